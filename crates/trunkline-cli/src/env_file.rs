//! Files of environment variables: one `NAME=value` a line.
//!
//! Empty lines and lines that begin with `#` are passed over, and so is `export` before a name. A value may stand in
//! single quotes, where everything is as written, or in double quotes, where `\n`, `\t`, `\"` and `\\` mean what they mean
//! everywhere; without quotes it ends at white space with a `#` behind it. Nothing is put in for `$`.

use std::path::Path;
use std::{fs, io};

/// Largest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// Why there are no variables.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvFileError {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    Line(#[from] BadLine),
}

/// A line that is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub(crate) struct BadLine {
    line: usize,
    reason: &'static str,
}

/// Reads a file.
pub(crate) fn read(path: &Path) -> Result<Vec<(String, String)>, EnvFileError> {
    let length = fs::metadata(path)?.len();
    if length > BYTES_MAX {
        let text = format!("it has {length} bytes, limit is {BYTES_MAX}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text).into());
    }
    Ok(parse(&fs::read_to_string(path)?)?)
}

fn parse(text: &str) -> Result<Vec<(String, String)>, BadLine> {
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = |reason| BadLine { line: index + 1, reason };
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, given) = line.split_once('=').ok_or(bad("expected NAME=value"))?;
        let name = name.trim();
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if name.is_empty() || !name.chars().all(fits) || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(bad("this cannot name a variable; expected NAME=value"));
        }
        let value = value(given.trim()).map_err(bad)?;
        if value.contains('\0') {
            return Err(bad("a variable cannot hold a zero byte"));
        }
        variables.push((name.to_owned(), value));
    }
    Ok(variables)
}

fn value(given: &str) -> Result<String, &'static str> {
    let Some(quote @ ('"' | '\'')) = given.chars().next() else {
        let comment =
            given.match_indices('#').find(|(at, _)| given[..*at].ends_with([' ', '\t']) || *at == 0);
        return Ok(comment.map_or(given, |(at, _)| &given[..at]).trim_end().to_owned());
    };
    let mut value = String::new();
    let mut rest = given[1..].chars();
    loop {
        match rest.next().ok_or("a quote is not closed")? {
            c if c == quote => break,
            '\\' if quote == '"' => value.push(match rest.next().ok_or("a quote is not closed")? {
                'n' => '\n',
                't' => '\t',
                c @ ('"' | '\\' | '$') => c,
                _ => return Err("only \\n, \\t, \\\" and \\\\ may follow a backslash in double quotes"),
            }),
            c => value.push(c),
        }
    }
    let rest = rest.as_str().trim_start();
    match rest.is_empty() || rest.starts_with('#') {
        true => Ok(value),
        false => Err("something stands behind the closing quote"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_plain_or_quoted() {
        let text = "# all of them\n\nA=1\n export B = two words # why\nC='it is $A # so'\nD=\"a\\n\\\"b\\\"\" # x\nE=\nF=a#b\nG=#x\r\n";
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "it is $A # so"),
            ("D", "a\n\"b\""),
            ("E", ""),
            ("F", "a#b"),
            ("G", ""),
        ];
        let parsed = parse(text).unwrap();
        let parsed: Vec<_> = parsed.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(parsed, expected);
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, expected) in [
            ("A=1\nB", "line 2: expected NAME=value"),
            ("A B=1", "line 1: this cannot name a variable; expected NAME=value"),
            ("\n\nA='x", "line 3: a quote is not closed"),
            ("A=\"x\" y", "line 1: something stands behind the closing quote"),
            ("A=\"\\x\"", "line 1: only \\n, \\t, \\\" and \\\\ may follow a backslash in double quotes"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
    }
}
