//! Arithmetic for the calculator tool: numbers, `+ - * /`, parentheses.

/// Deepest nesting of parentheses and signs: what people type must not exhaust the stack.
const DEPTH_MAX: usize = 64;

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum CalculatorError {
    #[error("the expression is not arithmetic")]
    Syntax,
    #[error("the expression divides by zero")]
    DivisionByZero,
    #[error("the expression is nested too deeply")]
    TooDeep,
}

/// The longest piece of a text that can be calculated: it starts with a digit, a sign or a parenthesis, and has an operator.
pub(super) fn find_expression(text: &str) -> Option<&str> {
    let is_part = |c: char| c.is_ascii_digit() || "+-*/(). ".contains(c);
    text.split(|c| !is_part(c))
        .map(|piece| piece.trim().trim_end_matches('.').trim())
        .filter(|piece| {
            piece.contains(['+', '-', '*', '/']) && evaluate(piece) != Err(CalculatorError::Syntax)
        })
        .max_by_key(|piece| piece.len())
}

/// Calculates.
///
/// # Errors
/// See [`CalculatorError`].
pub(super) fn evaluate(expression: &str) -> Result<f64, CalculatorError> {
    let mut rest = Rest { text: expression.as_bytes(), depth: 0 };
    let value = rest.sum()?;
    match rest.peek() {
        None => Ok(value),
        Some(_) => Err(CalculatorError::Syntax),
    }
}

/// What is left to be read.
struct Rest<'a> {
    text: &'a [u8],
    depth: usize,
}

impl Rest<'_> {
    fn peek(&mut self) -> Option<u8> {
        self.text = self.text.trim_ascii_start();
        self.text.first().copied()
    }

    fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.text = &self.text[1..];
        }
        found
    }

    fn sum(&mut self) -> Result<f64, CalculatorError> {
        let mut value = self.product()?;
        loop {
            if self.take(b'+') {
                value += self.product()?;
            } else if self.take(b'-') {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<f64, CalculatorError> {
        let mut value = self.factor()?;
        loop {
            if self.take(b'*') {
                value *= self.factor()?;
            } else if self.take(b'/') {
                let divisor = self.factor()?;
                if divisor == 0.0 {
                    return Err(CalculatorError::DivisionByZero);
                }
                value /= divisor;
            } else {
                return Ok(value);
            }
        }
    }

    fn factor(&mut self) -> Result<f64, CalculatorError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(CalculatorError::TooDeep);
        }
        let value = if self.take(b'-') {
            -self.factor()?
        } else if self.take(b'(') {
            let value = self.sum()?;
            if !self.take(b')') {
                return Err(CalculatorError::Syntax);
            }
            value
        } else {
            self.number()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn number(&mut self) -> Result<f64, CalculatorError> {
        self.peek();
        let length = self.text.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
        let (digits, rest) = self.text.split_at(length);
        let text = std::str::from_utf8(digits).map_err(|_| CalculatorError::Syntax)?;
        self.text = rest;
        text.parse().map_err(|_| CalculatorError::Syntax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_follows_the_rules_of_school() {
        for (expression, value) in
            [("1+2*3", 7.0), ("(1 + 2) * 3", 9.0), ("-4 / 8", -0.5), ("2 - 3 - 4", -5.0), ("--1.5", 1.5)]
        {
            assert_eq!(evaluate(expression), Ok(value), "{expression}");
        }
    }

    #[test]
    fn what_cannot_be_calculated_says_why() {
        let deep = "(".repeat(1000);
        for (expression, error) in [
            ("", CalculatorError::Syntax),
            ("1 +", CalculatorError::Syntax),
            ("(1", CalculatorError::Syntax),
            ("1 2", CalculatorError::Syntax),
            ("1/0", CalculatorError::DivisionByZero),
            (deep.as_str(), CalculatorError::TooDeep),
        ] {
            assert_eq!(evaluate(expression), Err(error), "{expression:.9}");
        }
    }

    #[test]
    fn expressions_are_found_in_sentences() {
        for (text, found) in [
            ("What is 6 * 7?", Some("6 * 7")),
            ("compute (1+2)/3.", Some("(1+2)/3")),
            ("in 2026 and 2027", None),
            ("well-known - or not", None),
        ] {
            assert_eq!(find_expression(text), found, "{text}");
        }
    }
}
