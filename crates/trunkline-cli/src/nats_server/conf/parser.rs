//! From text to a tree: one pass, which stops at the first mistake. The texts of mistakes are nats-server's.

use std::sync::Arc;

use super::{DEPTH_MAX, Entry, Map, Node, Place, Surroundings, SyntaxError, Value, bare};

/// Variables of the environment that refer to each other.
const REFERENCES_MAX: usize = 16;
/// Beginnings of hashes, which are text although they begin as a variable does.
const HASHES: [&str; 4] = ["2a$", "2b$", "2y$", "argon2"];

/// Reads a configuration; `file` is what places call it.
///
/// # Errors
/// The first mistake, here or in a file that is included.
pub(crate) fn parse(file: &str, text: &str, surroundings: &dyn Surroundings) -> Result<Map, SyntaxError> {
    let mut scopes = vec![Map::default()];
    read_file(file.into(), text, surroundings, &mut scopes, 0)?;
    Ok(scopes.pop().unwrap_or_default())
}

/// Reads a file into the innermost scope.
fn read_file(
    file: Arc<str>,
    text: &str,
    surroundings: &dyn Surroundings,
    scopes: &mut Vec<Map>,
    depth: usize,
) -> Result<(), SyntaxError> {
    Parser { file, rest: text, line: 1, line_start: text.len(), surroundings, depth }.top(scopes)
}

/// What a list of keys stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// The file, up to its end.
    File,
    /// Braces.
    Braces,
}

struct Parser<'a> {
    file: Arc<str>,
    rest: &'a str,
    line: usize,
    /// How much was left where the line began: at its first character on the first line, at the line feed before it on
    /// all others, which is how nats-server comes to its columns.
    line_start: usize,
    surroundings: &'a dyn Surroundings,
    /// Maps, lists and files around what is read.
    depth: usize,
}

impl<'a> Parser<'a> {
    fn top(&mut self, scopes: &mut Vec<Map>) -> Result<(), SyntaxError> {
        self.rest = self.rest.strip_prefix('\u{feff}').unwrap_or(self.rest);
        self.skip_blank();
        // JSON is a configuration, too.
        if self.peek() == Some('{') {
            self.next();
            self.keys(scopes, Within::Braces)?;
            self.skip_blank();
            return match self.peek() {
                None => Ok(()),
                Some(other) => Err(self.mistake(format!("Unexpected '{other}' behind the last brace."))),
            };
        }
        self.keys(scopes, Within::File)
    }

    /// Keys and values up to the end of the file, or of the braces.
    fn keys(&mut self, scopes: &mut Vec<Map>, within: Within) -> Result<(), SyntaxError> {
        loop {
            self.skip_between();
            match (self.peek(), within) {
                (None, Within::File) => return Ok(()),
                (None, Within::Braces) => {
                    return Err(self.mistake("Unexpected EOF processing map.".to_owned()));
                }
                (Some('}'), Within::Braces) => {
                    self.next();
                    return Ok(());
                }
                (Some(_), _) => self.entry(scopes, within)?,
            }
        }
    }

    fn entry(&mut self, scopes: &mut Vec<Map>, within: Within) -> Result<(), SyntaxError> {
        let place = self.place();
        let quoted = matches!(self.peek(), Some('"' | '\''));
        let key = if quoted { self.quoted()? } else { self.bare_key()? };
        self.skip_blank();
        if !quoted && key.eq_ignore_ascii_case("include") && !matches!(self.peek(), Some(':' | '=' | '{')) {
            self.include(scopes)?;
            return self.end_of_value(within);
        }
        if matches!(self.peek(), Some(':' | '=')) {
            self.next();
            self.skip_blank();
        }
        let node = self.value(scopes)?;
        if let Some(scope) = scopes.last_mut() {
            scope.entries.push(Entry { key, place, node, is_variable: false });
        }
        self.end_of_value(within)
    }

    fn bare_key(&mut self) -> Result<String, SyntaxError> {
        let ends = |c: char| c.is_whitespace() || matches!(c, ':' | '=' | '{' | '}' | ',' | ';' | '"');
        let key = self.take_until(ends);
        match key.is_empty() {
            true => {
                let seen = self.peek().map(String::from).unwrap_or_default();
                Err(self.mistake(format!("Expected a key but found '{seen}'.")))
            }
            false => Ok(key.to_owned()),
        }
    }

    fn include(&mut self, scopes: &mut Vec<Map>) -> Result<(), SyntaxError> {
        let name = match self.peek() {
            Some('"' | '\'') => self.quoted()?,
            _ => self.take_until(ends_bare_word).to_owned(),
        };
        if name.is_empty() {
            return Err(self.mistake("Expected include value but found nothing.".to_owned()));
        }
        if self.depth >= DEPTH_MAX {
            return Err(self.mistake(format!("Files include each other more than {DEPTH_MAX} deep.")));
        }
        let (file, text) = self
            .surroundings
            .include(&self.file, &name)
            .map_err(|error| SyntaxError::Include { name: name.clone(), cause: error.to_string() })?;
        read_file(file, &text, self.surroundings, scopes, self.depth + 1)
            .map_err(|source| SyntaxError::Included { name, source: Box::new(source) })
    }

    /// A value may be followed by a separator, the end of the line or of the map, or a comment.
    fn end_of_value(&mut self, within: Within) -> Result<(), SyntaxError> {
        self.skip_spaces();
        match (self.peek(), within) {
            (None | Some('\n' | ',' | ';' | '#'), _) | (Some('}'), Within::Braces) => Ok(()),
            (Some('/'), _) if self.rest.starts_with("//") => Ok(()),
            (Some(other), Within::File) => Err(self.mistake(format!(
                "Expected a top-level value to end with a new line, comment or EOF, but got '{other}' instead."
            ))),
            (Some(other), Within::Braces) => Err(self.mistake(format!(
                "Expected a map value terminator \",\" or a map terminator \"}}\", but got '{other}' instead."
            ))),
        }
    }

    fn value(&mut self, scopes: &mut Vec<Map>) -> Result<Node, SyntaxError> {
        let mut place = self.place();
        let value = match self.peek() {
            None => return Err(self.mistake("Unexpected EOF.".to_owned())),
            Some('{') => {
                self.deeper()?;
                self.next();
                // nats-server finds a map behind its brace.
                place = self.place();
                scopes.push(Map::default());
                let read = self.keys(scopes, Within::Braces);
                let map = scopes.pop().unwrap_or_default();
                read?;
                self.depth -= 1;
                Value::Map(map)
            }
            Some('[') => {
                self.deeper()?;
                self.next();
                let list = self.list(scopes)?;
                self.depth -= 1;
                Value::List(list)
            }
            Some('"' | '\'') => Value::Text(self.quoted()?),
            Some('(') => Value::Text(self.block()?),
            Some(_) => self.bare(scopes)?,
        };
        Ok(Node { value, place })
    }

    fn deeper(&mut self) -> Result<(), SyntaxError> {
        if self.depth >= DEPTH_MAX {
            return Err(self.mistake(format!("Maps and lists are nested more than {DEPTH_MAX} deep.")));
        }
        self.depth += 1;
        Ok(())
    }

    fn list(&mut self, scopes: &mut Vec<Map>) -> Result<Vec<Node>, SyntaxError> {
        let mut list = Vec::new();
        let expected = |seen: Option<char>| {
            // What nats-server shows for the end of the file.
            let seen = seen.unwrap_or('\0');
            format!(
                "Expected an array value terminator \",\" or an array terminator \"]\", but got '{seen}' instead."
            )
        };
        loop {
            self.skip_between();
            match self.peek() {
                None => return Err(self.mistake(expected(None))),
                Some(']') => {
                    self.next();
                    return Ok(list);
                }
                Some(_) => list.push(self.value(scopes)?),
            }
            self.skip_spaces();
            match self.peek() {
                Some('\n' | ',' | ';' | ']' | '#') => {}
                Some('/') if self.rest.starts_with("//") => {}
                other => return Err(self.mistake(expected(other))),
            }
        }
    }

    fn bare(&mut self, scopes: &mut [Map]) -> Result<Value, SyntaxError> {
        let line = self.line;
        let word = self.take_until(ends_bare_word);
        if word.is_empty() {
            let seen = self.peek().map(String::from).unwrap_or_default();
            return Err(self.mistake(format!("Expected a value but found '{seen}'.")));
        }
        match word.strip_prefix('$').filter(|name| !HASHES.iter().any(|hash| name.starts_with(hash))) {
            Some(name) => self.variable(name, line, scopes),
            None => bare::read(word).map_err(|message| SyntaxError::Text { line, message }),
        }
    }

    /// What was written before in the same map or in one around it, else what the environment says.
    fn variable(&self, name: &str, line: usize, scopes: &mut [Map]) -> Result<Value, SyntaxError> {
        let mut entries = scopes.iter_mut().rev().flat_map(|scope| scope.entries.iter_mut().rev());
        if let Some(entry) = entries.find(|entry| entry.key == name) {
            entry.is_variable = true;
            return Ok(entry.node.value.clone());
        }
        let mut name = name.to_owned();
        for _ in 0..REFERENCES_MAX {
            let Some(text) = self.surroundings.variable(&name) else {
                return Err(SyntaxError::Variable { name, line });
            };
            match text.strip_prefix('$').filter(|name| !HASHES.iter().any(|hash| name.starts_with(hash))) {
                Some(next) => name = next.to_owned(),
                None => return Ok(environment_value(&text)),
            }
        }
        Err(SyntaxError::VariableCycle { name })
    }

    /// Text in quotes: in double ones with escapes, in single ones as it stands.
    fn quoted(&mut self) -> Result<String, SyntaxError> {
        let Some(quote) = self.next() else { return Ok(String::new()) };
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(self.mistake("Unexpected EOF.".to_owned())),
                Some(c) if c == quote => return Ok(text),
                Some('\\') if quote == '"' => text.push(self.escape()?),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, SyntaxError> {
        match self.next() {
            Some('t') => Ok('\t'),
            Some('n') => Ok('\n'),
            Some('r') => Ok('\r'),
            Some(c @ ('"' | '\\')) => Ok(c),
            Some('x') => {
                let digits =
                    self.rest.get(..2).filter(|digits| digits.bytes().all(|d| d.is_ascii_hexdigit()));
                let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
                let Some(byte) = byte else {
                    return Err(self.mistake("Expected two hexadecimal digits after '\\x'.".to_owned()));
                };
                self.next();
                self.next();
                Ok(char::from(byte))
            }
            other => {
                let seen = other.map(String::from).unwrap_or_default();
                Err(self.mistake(format!(
                    "Invalid escape character '{seen}'. Only the following escape characters are allowed: \\xXX, \\t, \\n, \\r, \\\", \\\\."
                )))
            }
        }
    }

    /// Text in parentheses, which ends with one on a line of its own.
    fn block(&mut self) -> Result<String, SyntaxError> {
        self.next();
        let mut text = String::new();
        let mut line = String::new();
        loop {
            match self.next() {
                None => return Err(self.mistake("Unexpected EOF processing block.".to_owned())),
                Some(')') if line.trim().is_empty() => return Ok(text),
                Some('\n') => {
                    text.push_str(&line);
                    text.push('\n');
                    line.clear();
                }
                Some(c) => line.push(c),
            }
        }
    }

    /// Spaces, line feeds and comments, and the separators between values.
    fn skip_between(&mut self) {
        loop {
            self.skip_blank();
            match self.peek() {
                Some(',' | ';') => self.next(),
                _ => return,
            };
        }
    }

    /// Spaces, line feeds and comments.
    fn skip_blank(&mut self) {
        while let Some(c) = self.peek() {
            if c == '#' || self.rest.starts_with("//") {
                self.take_until(|c| c == '\n');
            } else if c.is_whitespace() {
                self.next();
            } else {
                return;
            }
        }
    }

    fn skip_spaces(&mut self) {
        self.take_until(|c| c == '\n' || !c.is_whitespace());
    }

    fn take_until(&mut self, ends: impl Fn(char) -> bool) -> &'a str {
        let text = self.rest;
        let split = text.find(ends).unwrap_or(text.len());
        // What is taken has no line feed in it, as every caller ends at one.
        self.rest = &text[split..];
        &text[..split]
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let c = chars.next()?;
        if c == '\n' {
            self.line += 1;
            self.line_start = self.rest.len();
        }
        self.rest = chars.as_str();
        Some(c)
    }

    fn place(&self) -> Place {
        Place { file: self.file.clone(), line: self.line, column: self.line_start - self.rest.len() }
    }

    fn mistake(&self, message: String) -> SyntaxError {
        SyntaxError::Text { line: self.line, message }
    }
}

fn ends_bare_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, ',' | ';' | ']' | '}')
}

/// What a variable of the environment holds is read as a bare word would be; what is none is text.
fn environment_value(text: &str) -> Value {
    let text = text.trim();
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    if let Some(inner) = inner {
        return Value::Text(inner.to_owned());
    }
    match text.chars().any(ends_bare_word) {
        true => Value::Text(text.to_owned()),
        false => bare::read(text).unwrap_or_else(|_| Value::Text(text.to_owned())),
    }
}
