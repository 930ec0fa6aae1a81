//! The configurations of the corpus: those of this repository, and those of a directory that `FARRIER_CORPUS` names. No tests.

use std::fs;
use std::path::{Path, PathBuf};

/// The directory of a case's files on the host.
const DIRECTORY: &str = "/etc/containerd";

/// The shortest specification of a runtime that containerd accepts.
const SPEC: &str =
    r#"{"ociVersion": "1.1.0", "process": {"cwd": "/", "user": {}}, "root": {"path": "rootfs"}}"#;

/// A configuration: a root file, and the files that it imports.
pub struct Case {
    /// The path in the corpus.
    pub name: String,
    /// Each file's path below [`DIRECTORY`], and its bytes.
    pub files: Vec<(PathBuf, Vec<u8>)>,
}

/// Every case, sorted by name.
pub fn all() -> Vec<Case> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut cases = Vec::new();
    for directory in ["behaviour", "distributions"] {
        collect(&corpus.join(directory), directory, &mut cases);
    }
    if let Some(directory) = std::env::var_os("FARRIER_CORPUS") {
        let before = cases.len();
        collect(Path::new(&directory), "extra", &mut cases);
        assert!(
            cases.len() > before,
            "FARRIER_CORPUS holds no configuration"
        );
    }
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    cases
}

fn collect(directory: &Path, name: &str, cases: &mut Vec<Case>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{name}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.join("config.toml").exists() {
            let mut files = Vec::new();
            gather(&path, Path::new(""), &mut files);
            cases.push(Case { name, files });
        } else if path.is_dir() {
            collect(&path, &name, cases);
        } else if [".toml", ".part", ".tmpl"]
            .iter()
            .any(|end| name.ends_with(end))
            && !name.ends_with("/cases.toml")
        {
            let files = vec![(PathBuf::from("config.toml"), bytes(&path))];
            cases.push(Case { name, files });
        }
    }
}

fn gather(directory: &Path, below: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let below = below.join(path.file_name().unwrap());
        if path.is_dir() {
            gather(&path, &below, files);
        } else {
            files.push((below, bytes(&path)));
        }
    }
}

/// The bytes of a file, in which [`DIRECTORY`] replaces the original directory, and paths replace the variables of the `MicroK8s` snap.
fn bytes(path: &Path) -> Vec<u8> {
    let names = [
        ("@DIR@", DIRECTORY),
        ("${SNAPSHOTTER}", "native"),
        ("${RUNTIME}", "runc"),
        ("${SNAP_DATA}", "/var/snap/microk8s/current"),
    ];
    let bytes = fs::read(path).unwrap();
    match String::from_utf8(bytes) {
        Ok(text) => names
            .iter()
            .fold(text, |text, (name, value)| text.replace(name, value))
            .into_bytes(),
        Err(error) => error.into_bytes(),
    }
}

impl Case {
    /// The text of the root file, if it is text.
    pub fn text(&self) -> Option<&str> {
        let (_, bytes) = self
            .files
            .iter()
            .find(|(path, _)| path == Path::new("config.toml"))?;
        std::str::from_utf8(bytes).ok()
    }

    /// Writes the files of the case to the root, and removes all other files that a configuration could import.
    pub fn lay_out(&self, root: &Path) {
        let directory = root.join(DIRECTORY.trim_start_matches('/'));
        for directory in ["etc", "nope", "var/lib/rancher", "var/snap"] {
            let _ = fs::remove_dir_all(root.join(directory));
        }
        for (_, bytes) in &self.files {
            for path in specs(&String::from_utf8_lossy(bytes)) {
                let path = root.join(path.trim_start_matches('/'));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, SPEC).unwrap();
            }
        }
        for (path, bytes) in &self.files {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }
}

/// The specifications that a configuration names; a node has the file.
fn specs(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| line.trim_start().starts_with("base_runtime_spec"))
        .filter_map(|line| line.split(['"', '\'']).nth(1))
        .filter(|path| path.starts_with("/etc/"))
}
