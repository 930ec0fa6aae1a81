//! What programs of a host say of themselves and of the configuration. They are run, or their words are remembered from a run of the same
//! program on the same bytes, which a run that finds nothing to do may trust: no change and no diagnosis rests on remembered words.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::exec;
use super::facts::{Facts, PROGRAM_LIMIT};
use super::host::HostRoot;
use super::stamps::Stamp;
use super::surroundings::lacking;
use super::survey;
use crate::containerd_config::Loaded;
use crate::handoff::sha256_hex;

/// The longest `containerd config dump` seen is 40 kB. Longer words are asked for again in each run: their record stays small.
const LONGEST_REMEMBERED: usize = 1 << 17;

/// What a program said, and everything that made it say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Absolute path on the host.
    program: String,
    stamp: Stamp,
    arguments: Vec<String>,
    /// SHA-256 of the configuration that it read.
    input: String,
    said: String,
}

/// What was heard of a host's programs.
#[derive(Debug, Default)]
pub struct Heard {
    /// All of it that can be remembered.
    pub(super) words: Vec<Words>,
    /// Whether some of it was not said in this run.
    pub(super) recalled: bool,
}

/// Words, or why there are none; with them what is to be remembered.
type Answer = (Result<String, String>, Option<Words>);

impl Facts {
    /// Has the host's programs say their releases and what they make of the configuration. What is among `known` is taken from there.
    pub(super) async fn listen(&mut self, host: &HostRoot, known: &[Words]) {
        let program = self.program.as_deref();
        let release = survey::releaser(host, self.distro, self.daemon.as_ref());
        let release = release
            .as_ref()
            .map(|(program, word)| (program.as_str(), *word));
        let read = input(&self.loaded);
        // Where there is no file, the defaults count, which 1.x refuses to dump.
        let dump = match self.loaded.root.text {
            Some(_) => &dump_arguments(&self.loaded.root.path)[..],
            None => &["config", "default"],
        };
        let ask = async |program: Option<&str>, arguments: &[&str], read: &str| match program {
            Some(program) => ask(host, known, program, arguments, read).await,
            None => (Err("no containerd is installed".to_owned()), None),
        };
        // Programs that don't wait for each other.
        let (version, dump, release) = futures::join!(
            ask(program, &["--version"], ""),
            ask(program, dump, &read),
            ask(
                release.map(|(program, _)| program),
                release
                    .as_ref()
                    .map_or(&[], |(_, word)| std::slice::from_ref(word)),
                "",
            ),
        );
        let version_of = |answer: &Answer| answer.0.as_ref().ok()?.trim().parse().ok();
        self.version = version_of(&version);
        self.release = version_of(&release);
        let words: Vec<Words> = [version.1, dump.1, release.1]
            .into_iter()
            .flatten()
            .collect();
        self.dump = dump.0;
        let dump = self.dump.as_ref().ok();
        self.lacking = dump.and_then(|dump| lacking(host, dump));
        self.heard = Heard {
            recalled: words.iter().any(|words| known.contains(words)),
            words,
        };
    }
}

/// What has containerd print what it makes of the configuration file at `path`.
pub(super) fn dump_arguments(path: &str) -> [&str; 4] {
    ["-c", path, "config", "dump"]
}

async fn ask(
    host: &HostRoot,
    known: &[Words],
    program: &str,
    arguments: &[&str],
    input: &str,
) -> Answer {
    // Looked at before it is run: what changes it from now on shows.
    let stamp = Stamp::of(host, program);
    let same = |words: &&Words| {
        words.program == program
            && Some(&words.stamp) == stamp.as_ref()
            && words.arguments == arguments
            && words.input == input
    };
    if let Some(words) = known.iter().find(same) {
        return (Ok(words.said.clone()), Some(words.clone()));
    }
    match exec::run(host, program, arguments, PROGRAM_LIMIT).await {
        Ok(said) => {
            let words = stamp.filter(|_| said.len() <= LONGEST_REMEMBERED);
            let words = words.map(|stamp| Words {
                program: program.to_owned(),
                stamp,
                arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
                input: input.to_owned(),
                said: said.clone(),
            });
            (Ok(said), words)
        }
        Err(error) => (Err(error.to_string()), None),
    }
}

/// SHA-256 of a configuration: of the paths and texts of all files that it consists of.
fn input(loaded: &Loaded) -> String {
    let mut all = String::new();
    for file in loaded.files() {
        // Quoted, so that no text can pass for two. A `String` takes all that is written to it.
        let _ = write!(all, "{:?}{:?}", file.path, file.text);
    }
    sha256_hex(all.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::containerd_config::SourceFile;

    #[tokio::test]
    async fn a_program_is_run_again_when_it_or_what_it_reads_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        let program = program.to_str().unwrap();
        symlink("/bin/sh", program).unwrap();
        let host = HostRoot::open(std::path::Path::new("/")).unwrap();
        // Each run is a line in a file.
        let script = format!("echo >> {program}.runs; wc -l < {program}.runs");
        let run = ["-c", &script];
        let (first, words) = ask(&host, &[], program, &run, "").await;
        assert_eq!(first.unwrap().trim(), "1");
        let known = [words.unwrap()];
        let (again, words) = ask(&host, &known, program, &run, "").await;
        assert_eq!(again.unwrap().trim(), "1", "it was not run");
        assert_eq!(words.as_ref(), Some(&known[0]));
        let other = ["-c", &script, "other"];
        for (known, arguments, input, said) in [
            (&known[..0], &run[..], "", "2"),
            (&known, &other, "", "3"),
            (&known, &run, "other", "4"),
        ] {
            let (now, words) = ask(&host, known, program, arguments, input).await;
            assert_eq!(now.unwrap().trim(), said);
            assert_ne!(words.as_ref(), known.first());
        }
        std::fs::remove_file(program).unwrap();
        symlink("/bin/echo", program).unwrap();
        let (now, _) = ask(&host, &known, program, &run, "").await;
        assert_eq!(now.unwrap().trim(), run.join(" "));
    }

    #[tokio::test]
    async fn words_of_a_program_that_failed_or_flooded_are_not_remembered() {
        let host = HostRoot::open(std::path::Path::new("/")).unwrap();
        for script in ["echo half; exit 1", "head -c 200000 /dev/zero"] {
            let (_, words) = ask(&host, &[], "/bin/sh", &["-c", script], "").await;
            assert_eq!(words, None, "{script}");
        }
    }

    #[test]
    fn configurations_that_differ_in_a_byte_a_path_or_a_file_differ() {
        let file = |path: &str, text: Option<&str>| SourceFile {
            path: path.to_owned(),
            text: text.map(str::to_owned),
        };
        let loaded = |imported: &[SourceFile]| Loaded {
            root: file("/a", Some("x")),
            imported: imported.to_vec(),
        };
        let all = [
            loaded(&[]),
            loaded(&[file("/b", None)]),
            loaded(&[file("/b", Some(""))]),
            loaded(&[file("/c", Some(""))]),
            loaded(&[file("/b", Some("")), file("/c", Some(""))]),
        ];
        let digests: std::collections::BTreeSet<_> = all.iter().map(input).collect();
        assert_eq!(digests.len(), all.len());
    }
}
