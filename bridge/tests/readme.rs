//! The README says what is true: its tables are compared with the code.

use std::fmt::Write as _;
use std::path::PathBuf;

use bridge::{admin, config, metrics};

fn readme_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md")
}

/// `(marker, text)` of each generated part.
fn parts() -> Vec<(&'static str, String)> {
    let mut flags = String::from("| flag | default | meaning |\n|---|---|---|\n");
    for flag in config::flags() {
        let config::Flag {
            usage,
            default,
            help,
        } = flag;
        writeln!(flags, "| `{usage}` | {default} | {help} |").unwrap();
    }
    let mut routes = String::from("| route | answer |\n|---|---|\n");
    for (route, meaning) in admin::ROUTES {
        writeln!(routes, "| `{route}` | {meaning} |").unwrap();
    }
    let mut names = String::from("| metric | meaning |\n|---|---|\n");
    for (name, meaning) in metrics::NAMES {
        writeln!(names, "| `{name}` | {} |", meaning.trim()).unwrap();
    }
    vec![("flags", flags), ("routes", routes), ("metrics", names)]
}

fn updated(readme: &str) -> Option<String> {
    let mut text = readme.to_owned();
    for (name, part) in parts() {
        let (begin, end) = (
            format!("<!-- {name}: begin -->\n"),
            format!("<!-- {name}: end -->"),
        );
        let (before, rest) = text.split_once(&begin)?;
        let (_, after) = rest.split_once(&end)?;
        text = format!("{before}{begin}{part}{end}{after}");
    }
    wire::doc::updated(&text)
}

/// `UPDATE_README=1 cargo test -p bridge --test readme` rewrites the tables.
#[test]
fn the_readme_lists_flags_routes_metrics_and_formats_as_they_are() {
    let readme = std::fs::read_to_string(readme_path()).unwrap();

    let updated = updated(&readme).expect("the README has the markers of every part");

    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(readme_path(), &updated).unwrap();
    }
    let first_difference = readme.lines().zip(updated.lines()).find(|(a, b)| a != b);
    let is_current = readme == updated || std::env::var_os("UPDATE_README").is_some();
    assert!(
        is_current,
        "README.md is behind the code at {first_difference:?}; UPDATE_README=1 cargo test -p bridge --test readme"
    );
}
