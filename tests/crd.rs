//! The Shim's definition: what runtime-class-manager's users wrote before reads unchanged, and the schema says what it should.

use farrier::api::{Shim, crd_yaml};
use rstest::rstest;

/// In the shape of runtime-class-manager's own samples, release 0.2.0.
const SPIN: &str = r"
apiVersion: runtime.spinkube.dev/v1alpha1
kind: Shim
metadata:
  name: spin-v2
spec:
  nodeSelector:
    spin: 'true'
  containerdRuntimeOptions:
    SystemdCgroup: 'true'
  fetchStrategy:
    type: anonymousHttp
    anonHttp:
      location: https://example.org/containerd-shim-spin-v2-linux-x86_64.tar.gz
    platforms:
    - {os: linux, arch: aarch64, location: https://example.org/arm64.tar.gz, sha256: a923f08d91c110d2cda29fbc380273e6d0a97aa0bab455c55f613c8d5a8bfbe4}
  runtimeClass: {name: wasmtime-spin-v2, handler: spin-v2}
  rolloutStrategy: {type: recreate}
";

const ROLLING: &str = r"
apiVersion: runtime.spinkube.dev/v1alpha1
kind: Shim
metadata: {name: wasmtime-v1}
spec:
  fetchStrategy: {anonHttp: {location: https://example.org/a.tar.gz}}
  runtimeClass: {name: '', handler: wasmtime-v1}
  rolloutStrategy: {type: rolling, rolling: {maxUpdate: 5}}
status: {nodes: 1, nodesReady: 0}
";

#[rstest]
#[case(SPIN)]
#[case(ROLLING)]
fn a_manifest_of_runtime_class_manager_is_parsed_unchanged(#[case] manifest: &str) {
    let shim: Shim = serde_saphyr::from_str(manifest).unwrap();
    assert!(shim.spec.handlers().is_ok());
    assert!(shim.spec.artifact("linux", "arm64").is_ok());
}

#[test]
fn the_definition_is_the_one_that_was_reviewed() {
    insta::assert_snapshot!(crd_yaml());
}
