//! The programs that a cluster is made of: which versions, and how Go builds them. `tools/` holds their locked modules.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::process;
use crate::progress::Progress;

/// 1.34 is the newest Kubernetes that takes containerd 1.6 and 1.7 and a host with cgroup v1: 1.36 asks the runtime for its cgroup
/// driver and has no other way.
const KUBERNETES: &str = "1.34.4";
const ETCD: &str = "3.6.6";
const HELM: &str = "3.22.0";
const KWOK: &str = "0.8.0";

/// Parts of containerd that need C libraries or file systems that no node here has.
const CONTAINERD_TAGS: &str = "urfave_cli_no_docs no_btrfs no_devmapper no_zfs no_aufs";

/// A containerd release that a node can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ContainerdVersion {
    /// 1.6.36: configuration version 2.
    V1_6,
    /// 1.7.35: configuration version 2.
    V1_7,
    /// 2.1.9: configuration version 3, merges drop-ins deeply, publishes runtime handlers.
    V2_1,
    /// 2.4.2: the newest.
    V2_4,
}

impl ContainerdVersion {
    /// Every release, oldest first.
    pub const ALL: [Self; 4] = [Self::V1_6, Self::V1_7, Self::V2_1, Self::V2_4];

    /// The release as its users write it, as in `1.7.35`.
    #[must_use]
    pub fn version(self) -> &'static str {
        match self {
            Self::V1_6 => "1.6.36",
            Self::V1_7 => "1.7.35",
            Self::V2_1 => "2.1.9",
            Self::V2_4 => "2.4.2",
        }
    }

    /// Whether the release belongs to the 1.x line, with its configuration version 2.
    #[must_use]
    pub fn is_1(self) -> bool {
        match self {
            Self::V1_6 | Self::V1_7 => true,
            Self::V2_1 | Self::V2_4 => false,
        }
    }
}

impl fmt::Display for ContainerdVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.version())
    }
}

impl FromStr for ContainerdVersion {
    type Err = String;

    /// Reads a whole version or its first two numbers.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|known| {
                let version = known.version();
                version == text
                    || version
                        .strip_prefix(text)
                        .is_some_and(|rest| rest.starts_with('.') && text.contains('.'))
            })
            .ok_or_else(|| {
                let known: Vec<_> = Self::ALL.iter().map(|known| known.version()).collect();
                format!(
                    "unknown containerd release {text:?}: use one of {}",
                    known.join(", ")
                )
            })
    }
}

impl TryFrom<String> for ContainerdVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ContainerdVersion> for String {
    fn from(version: ContainerdVersion) -> Self {
        version.version().to_owned()
    }
}

/// What can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// `kube-apiserver`, `kube-controller-manager`, `kube-scheduler`, `kubelet`, `kubectl`.
    Kubernetes,
    /// `etcd`.
    Etcd,
    /// `helm`.
    Helm,
    /// `kwok`, which plays the kubelets of any number of Node objects.
    Kwok,
    /// `containerd`, `containerd-shim-runc-v2`, `ctr`.
    Containerd(ContainerdVersion),
}

/// How Go builds one tool.
struct Recipe {
    name: &'static str,
    version: &'static str,
    /// The directory under `tools/`.
    module: String,
    packages: Vec<String>,
    /// Linker settings that tell a program its version: variable and value.
    variables: Vec<(String, String)>,
    tags: &'static str,
    /// A program that Go names after its directory, and the name that it goes by.
    rename: Option<(&'static str, &'static str)>,
}

impl Tool {
    fn recipe(self) -> Recipe {
        match self {
            Self::Kubernetes => kubernetes(),
            Self::Etcd => Recipe {
                name: "etcd",
                version: ETCD,
                module: "etcd".to_owned(),
                packages: vec!["go.etcd.io/etcd/server/v3".to_owned()],
                variables: Vec::new(),
                tags: "",
                rename: Some(("server", "etcd")),
            },
            Self::Helm => helm(),
            Self::Kwok => Recipe {
                name: "kwok",
                version: KWOK,
                module: "kwok".to_owned(),
                packages: vec!["sigs.k8s.io/kwok/cmd/kwok".to_owned()],
                variables: Vec::new(),
                tags: "",
                rename: None,
            },
            Self::Containerd(version) => containerd(version),
        }
    }
}

fn kubernetes() -> Recipe {
    let variable = |name: &str, value: &str| {
        (
            format!("k8s.io/component-base/version.{name}"),
            value.to_owned(),
        )
    };
    Recipe {
        name: "kubernetes",
        version: KUBERNETES,
        module: "kubernetes".to_owned(),
        packages: [
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kubectl",
        ]
        .map(|program| format!("k8s.io/kubernetes/cmd/{program}"))
        .to_vec(),
        variables: vec![
            variable("gitVersion", &format!("v{KUBERNETES}")),
            variable("gitMajor", "1"),
            variable("gitMinor", "34"),
            variable("gitTreeState", "clean"),
        ],
        tags: "",
        rename: None,
    }
}

fn helm() -> Recipe {
    let module = "helm.sh/helm/v3";
    let mut variables = vec![(
        format!("{module}/internal/version.version"),
        format!("v{HELM}"),
    )];
    // The Kubernetes that `helm template` and `helm lint` assume.
    for package in ["pkg/lint/rules", "pkg/chartutil"] {
        for (name, value) in [("k8sVersionMajor", "1"), ("k8sVersionMinor", "34")] {
            variables.push((format!("{module}/{package}.{name}"), value.to_owned()));
        }
    }
    Recipe {
        name: "helm",
        version: HELM,
        module: "helm".to_owned(),
        packages: vec![format!("{module}/cmd/helm")],
        variables,
        tags: "",
        rename: None,
    }
}

fn containerd(version: ContainerdVersion) -> Recipe {
    let module = if version.is_1() {
        "github.com/containerd/containerd"
    } else {
        "github.com/containerd/containerd/v2"
    };
    Recipe {
        name: "containerd",
        version: version.version(),
        module: format!("containerd-{version}"),
        packages: ["containerd", "containerd-shim-runc-v2", "ctr"]
            .map(|program| format!("{module}/cmd/{program}"))
            .to_vec(),
        variables: vec![(format!("{module}/version.Version"), format!("v{version}"))],
        tags: CONTAINERD_TAGS,
        rename: None,
    }
}

impl Cache {
    /// The directory with the programs of `tool`, built first if need be: minutes when nothing is there, seconds while Go's own build
    /// cache is warm.
    ///
    /// # Errors
    /// When Go fails; the message ends with its last words.
    pub fn tool(&self, tool: Tool, progress: &Progress) -> Result<PathBuf> {
        let recipe = tool.recipe();
        let (name, version) = (recipe.name, recipe.version);
        self.publish(&format!("tools/{name}-{version}"), |directory| {
            progress.step(
                format!("building {name} {version} from source, once (minutes)"),
                || build(&recipe, directory),
            )
        })
    }
}

/// `go build`, whatever the user's own settings of Go are.
#[must_use]
pub fn go_build() -> Command {
    let mut command = Command::new("go");
    command
        // A newer toolchain than the installed one, where a module asks for it, and nothing but what go.sum knows.
        .envs([("GOTOOLCHAIN", "auto"), ("GOFLAGS", "-mod=readonly")])
        .env("GOWORK", "off")
        // Go would ask git for the commit, and git has no answer for root in another user's checkout.
        .args(["build", "-trimpath", "-buildvcs=false"]);
    // Its caches are there, and services start us without it.
    if let Some(home) = std::env::home_dir() {
        command.env("HOME", home);
    }
    command
}

fn build(recipe: &Recipe, directory: &Path) -> Result<()> {
    let linker = recipe
        .variables
        .iter()
        .fold("-s -w".to_owned(), |flags, (variable, value)| {
            format!("{flags} -X {variable}={value}")
        });
    let module = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tools")
        .join(&recipe.module);
    // `-o` takes a directory only when it ends with a slash.
    let out = directory.join("");
    process::run(
        go_build()
            .current_dir(module)
            .env("CGO_ENABLED", "0")
            .args(["-tags", recipe.tags])
            .args(["-ldflags", &linker, "-o"])
            .arg(out)
            .args(&recipe.packages),
    )?;
    if let Some((from, to)) = recipe.rename {
        fs::rename(directory.join(from), directory.join(to))
            .with_context(|| format!("go built no {from}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containerd_version_is_parsed_in_full_or_by_its_first_two_numbers() {
        for known in ContainerdVersion::ALL {
            assert_eq!(known.to_string().parse(), Ok(known));
        }
        assert_eq!("1.7".parse(), Ok(ContainerdVersion::V1_7));
        for unknown in ["1", "2.0", "1.7.3", "", "1."] {
            assert!(unknown.parse::<ContainerdVersion>().is_err(), "{unknown}");
        }
    }

    #[test]
    fn every_tool_has_its_locked_module() {
        let tools = [Tool::Kubernetes, Tool::Etcd, Tool::Helm, Tool::Kwok]
            .into_iter()
            .chain(ContainerdVersion::ALL.map(Tool::Containerd));
        for tool in tools {
            let module = tool.recipe().module;
            let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tools")
                .join(module);
            assert!(directory.join("go.mod").is_file() && directory.join("go.sum").is_file());
        }
    }
}
