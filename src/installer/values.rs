//! Options as requests carry them, and as containerd's configuration does: two rooms that don't know each other. Pure.

use std::collections::BTreeMap;

use crate::containerd_config::Value;
use crate::handoff::OptionValue;

/// As the configuration has them.
pub(super) fn declared(options: &BTreeMap<String, OptionValue>) -> BTreeMap<String, Value> {
    let value = |value: &OptionValue| match value {
        OptionValue::Boolean(value) => Value::Boolean(*value),
        OptionValue::Integer(value) => Value::Integer(*value),
        OptionValue::String(value) => Value::String(value.clone()),
    };
    let options = options.iter();
    options.map(|(key, it)| (key.clone(), value(it))).collect()
}

/// As a request has them.
pub(super) fn requested(options: &BTreeMap<String, Value>) -> BTreeMap<String, OptionValue> {
    let value = |value: &Value| match value {
        Value::Boolean(value) => Some(OptionValue::Boolean(*value)),
        Value::Integer(value) => Some(OptionValue::Integer(*value)),
        Value::String(value) => Some(OptionValue::String(value.clone())),
        // No shim has these.
        Value::Float(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
    };
    let options = options.iter();
    options
        .filter_map(|(key, it)| Some((key.clone(), value(it)?)))
        .collect()
}
