//! The command lines of the programs behind cargo's aliases.

use std::ffi::OsString;

/// The process's arguments, its name first. The aliases in `.cargo/config.toml` end in `--`; with the `--` that cargo
/// usually wants there are two of them, and the second says nothing.
pub fn arguments() -> impl Iterator<Item = OsString> {
    without_dashes(std::env::args_os())
}

fn without_dashes(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let is_dashes = |(index, argument): &(usize, OsString)| *index == 1 && argument == "--";
    let kept = arguments.enumerate().filter(move |pair| !is_dashes(pair));
    kept.map(|(_, argument)| argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashes_before_the_arguments_are_no_argument() {
        for given in ["bench --quick live", "bench -- --quick live"] {
            let arguments = given.split(' ').map(OsString::from);
            let kept: Vec<_> = without_dashes(arguments).collect();
            assert_eq!(kept, ["bench", "--quick", "live"]);
        }
    }
}
