//! Reads a row as `COPY ... TO STDOUT` prints it.
//!
//! In: one line, with or without its line break. Out: its fields, NULL told from empty.
//! Invariant: total; what COPY would never print is taken as it stands.
//!
//! PostgreSQL: "COPY", section "Text Format". Backslash escapes stand for control characters, so a tab
//! always separates and a line break always ends.

/// The raw fields of a line, still escaped.
#[inline]
pub fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.split(|&byte| byte == b'\t')
}

/// The field's text; None for NULL. Written into `scratch` where it holds escapes.
#[inline]
pub fn unescape<'a>(field: &'a [u8], scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    if field == b"\\N" {
        return None;
    }
    let Some(first) = field.iter().position(|&byte| byte == b'\\') else {
        return Some(field);
    };
    scratch.clear();
    scratch.extend_from_slice(&field[..first]);
    let mut rest = &field[first..];
    while let [byte, tail @ ..] = rest {
        if let (b'\\', [escaped, tail @ ..]) = (byte, tail) {
            scratch.push(control(*escaped));
            rest = tail;
        } else {
            scratch.push(*byte);
            rest = tail;
        }
    }
    Some(scratch)
}

/// COPY TO writes these and no octal or hexadecimal escapes.
fn control(escaped: u8) -> u8 {
    match escaped {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'v' => 0x0b,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &[u8]) -> Vec<Option<Vec<u8>>> {
        fields(line)
            .map(|field| unescape(field, &mut Vec::new()).map(<[u8]>::to_vec))
            .collect()
    }

    /// As `CopyAttributeOutText` does it.
    fn print(row: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut line = Vec::new();
        for (index, value) in row.iter().enumerate() {
            if index > 0 {
                line.push(b'\t');
            }
            let Some(value) = value else {
                line.extend_from_slice(b"\\N");
                continue;
            };
            for &byte in value {
                match byte {
                    0x08 => line.extend_from_slice(b"\\b"),
                    0x0c => line.extend_from_slice(b"\\f"),
                    b'\n' => line.extend_from_slice(b"\\n"),
                    b'\r' => line.extend_from_slice(b"\\r"),
                    b'\t' => line.extend_from_slice(b"\\t"),
                    0x0b => line.extend_from_slice(b"\\v"),
                    b'\\' => line.extend_from_slice(b"\\\\"),
                    other => line.push(other),
                }
            }
        }
        line.push(b'\n');
        line
    }

    #[test]
    fn null_is_not_the_empty_text_nor_a_backslash_and_an_n() {
        assert_eq!(
            read(b"\\N\t\t\\\\N\n"),
            [None, Some(vec![]), Some(b"\\N".to_vec())]
        );
    }

    #[test]
    fn a_cut_escape_is_a_backslash() {
        assert_eq!(read(b"a\\"), [Some(b"a\\".to_vec())]);
    }

    proptest! {
        #[test]
        fn what_copy_prints_is_read_back(
            row in prop::collection::vec(prop::option::of(any::<Vec<u8>>()), 1..8)
        ) {
            prop_assert_eq!(read(&print(&row)), row);
        }

        #[test]
        fn any_line_is_read_without_panic(line: Vec<u8>) {
            read(&line);
        }
    }
}
