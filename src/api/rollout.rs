//! How a change of a Shim reaches its nodes, as users write it. Pure: which node is next is decided in the controller.

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::error::Error;

/// How a change of a Shim is rolled out to its nodes.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStrategy {
    /// `recreate` changes all nodes at once except control-plane nodes. `rolling` changes at most rolling.maxUpdate nodes at a time,
    /// counted over all Shims; a failed node halts the rollout and is named in the conditions of the Shim. With both types,
    /// control-plane nodes come last, one at a time and only while no node has failed, and nodes wait while they are cordoned or not
    /// ready.
    #[serde(rename = "type")]
    pub kind: RolloutKind,
    /// Parameters of `rolling`. The default is one node at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolling: Option<Rolling>,
}

impl RolloutStrategy {
    /// How many nodes may change at a time; `None` without a limit.
    #[must_use]
    pub fn max_update(&self) -> Option<MaxUpdate> {
        match self.kind {
            RolloutKind::Recreate => None,
            RolloutKind::Rolling => Some(self.rolling.unwrap_or_default().max_update),
        }
    }
}

/// The kinds of rollout.
#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum RolloutKind {
    /// A few nodes at a time.
    Rolling,
    /// Every node at once.
    #[default]
    Recreate,
}

/// Parameters of a rolling rollout.
#[derive(Serialize, Deserialize, KubeSchema, Debug, Clone, Copy, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Rolling {
    /// How many nodes change at a time: a number (less than 1 counts as 1), or a percentage of the selected nodes, for example `25%`,
    /// rounded up.
    #[serde(default)]
    #[schemars(schema_with = "max_update_schema")]
    #[x_kube(validation = Rule::new("type(self) == int || self.matches('^([1-9][0-9]?|100)%$')")
        .message("use a number of nodes or a percentage from 1% to 100%"))]
    pub max_update: MaxUpdate,
}

/// How many nodes may change at a time, as a number or a percentage.
///
/// In JSON an integer or a string, as Kubernetes' `IntOrString`. Every integer is read, because RCM's schema allows every integer.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(try_from = "NumberOrText", into = "NumberOrText")]
pub enum MaxUpdate {
    /// A number of nodes.
    Nodes(u32),
    /// A percentage of the nodes, from 1 to 100.
    Percent(u8),
}

impl Default for MaxUpdate {
    /// One node at a time.
    fn default() -> Self {
        Self::Nodes(1)
    }
}

impl MaxUpdate {
    /// The number of nodes, out of `nodes`. A percentage is rounded up, and the result is at least 1.
    #[must_use]
    pub fn of(&self, nodes: usize) -> usize {
        match *self {
            Self::Nodes(count) => usize::try_from(count).unwrap_or(usize::MAX).max(1),
            Self::Percent(share) => nodes
                .saturating_mul(usize::from(share))
                .div_ceil(100)
                .max(1),
        }
    }
}

/// [`MaxUpdate`] in JSON.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(i64),
    Text(String),
}

impl TryFrom<NumberOrText> for MaxUpdate {
    type Error = Error;

    fn try_from(written: NumberOrText) -> Result<Self, Error> {
        let text = match written {
            NumberOrText::Number(count) => {
                return Ok(Self::Nodes(u32::try_from(count.max(1)).unwrap_or(u32::MAX)));
            }
            NumberOrText::Text(text) => text,
        };
        let share = text
            .strip_suffix('%')
            .and_then(|digits| digits.parse().ok());
        match share {
            Some(share @ 1..=100) => Ok(Self::Percent(share)),
            Some(_) | None => Err(Error::MaxUpdate { found: text }),
        }
    }
}

impl From<MaxUpdate> for NumberOrText {
    fn from(max_update: MaxUpdate) -> Self {
        match max_update {
            MaxUpdate::Nodes(count) => Self::Number(count.into()),
            MaxUpdate::Percent(share) => Self::Text(format!("{share}%")),
        }
    }
}

/// An integer or a string in a structural schema of Kubernetes. The length bounds the cost of the validation rule.
fn max_update_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "nullable": false,
        "maxLength": 32,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::rcm(serde_json::json!(5), MaxUpdate::Nodes(5), 200, 5)]
    #[case::rcm_takes_any_integer(serde_json::json!(0), MaxUpdate::Nodes(1), 200, 1)]
    #[case::rcm_takes_any_integer(serde_json::json!(-3), MaxUpdate::Nodes(1), 200, 1)]
    #[case::a_share(serde_json::json!("25%"), MaxUpdate::Percent(25), 200, 50)]
    #[case::a_share_is_rounded_up(serde_json::json!("25%"), MaxUpdate::Percent(25), 5, 2)]
    #[case::at_least_one(serde_json::json!("1%"), MaxUpdate::Percent(1), 0, 1)]
    #[case::all(serde_json::json!("100%"), MaxUpdate::Percent(100), 7, 7)]
    fn max_update_is_a_number_of_nodes_or_a_percentage(
        #[case] written: serde_json::Value,
        #[case] read: MaxUpdate,
        #[case] nodes: usize,
        #[case] expected: usize,
    ) {
        let rolling: Rolling =
            serde_json::from_value(serde_json::json!({"maxUpdate": written})).unwrap();
        assert_eq!(rolling.max_update, read);
        assert_eq!(rolling.max_update.of(nodes), expected);
        let again = serde_json::to_value(read).unwrap();
        assert_eq!(serde_json::from_value::<MaxUpdate>(again).unwrap(), read);
    }

    #[test]
    fn an_invalid_max_update_is_refused_with_the_valid_forms() {
        for written in ["", "%", "0%", "101%", "5", "half", "-1%", "+5%%"] {
            let error = serde_json::from_value::<MaxUpdate>(written.into()).unwrap_err();
            assert!(
                error.to_string().contains("a percentage from 1% to 100%"),
                "{written}: {error}"
            );
        }
    }

    #[test]
    fn a_rollout_strategy_without_parameters_changes_one_node_at_a_time_or_all_at_once() {
        let strategy = |json| serde_json::from_value::<RolloutStrategy>(json).unwrap();
        let rolling = strategy(serde_json::json!({"type": "rolling"}));
        assert_eq!(rolling.max_update(), Some(MaxUpdate::Nodes(1)));
        let recreate = serde_json::json!({"type": "recreate", "rolling": {"maxUpdate": 5}});
        assert_eq!(strategy(recreate).max_update(), None);
        assert_eq!(RolloutStrategy::default().max_update(), None);
    }
}
