//! The golden files are the contract: a changed byte shows as a diff to review.
//! `UPDATE_GOLDEN=1 cargo test -p wire` rewrites them. A new message needs an empty `.json` first:
//! `wire::doc` includes it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::samples;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// 16 bytes a line: offset, hex, and the printable ones.
fn hex_dump(bytes: &[u8]) -> String {
    let mut dump = String::new();
    for (line, chunk) in bytes.chunks(16).enumerate() {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let is_printable = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
        let text: String = chunk
            .iter()
            .map(|&b| if is_printable(b) { char::from(b) } else { '.' })
            .collect();
        writeln!(dump, "{:04x}  {:<47}  |{text}|", line * 16, hex.join(" ")).unwrap();
    }
    dump
}

#[test]
fn every_message_has_the_bytes_and_the_json_of_its_golden_files() {
    let is_update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for sample in samples::all() {
        let files = [
            ("json", sample.json),
            ("msgpack.hex", hex_dump(&sample.msgpack)),
        ];
        for (suffix, now) in files {
            let path = directory().join(format!("{}.{suffix}", sample.name));
            if is_update {
                fs::write(&path, &now).unwrap();
            }
            let golden = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(
                now,
                golden,
                "{} differs; UPDATE_GOLDEN=1 rewrites it",
                path.display()
            );
        }
    }
}

#[test]
fn every_golden_file_is_made_by_a_sample_and_shown_in_the_readme_section() {
    let samples: BTreeSet<String> = samples::all()
        .iter()
        .map(|sample| sample.name.to_owned())
        .collect();
    let shown: BTreeSet<String> = wire::doc::FORMATS
        .iter()
        .map(|format| format.name.to_owned())
        .collect();
    let files: BTreeSet<String> = fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .map(|file| file.split_once('.').unwrap().0.to_owned())
        .collect();

    assert_eq!(files, samples);
    assert_eq!(shown, samples);
}
