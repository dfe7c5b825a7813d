//! Parameters of a request: read strictly, so that a mistyped value is told and not taken for the default.

use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};

/// Entries of a list unless a request says otherwise.
const LIMIT_DEFAULT: usize = 1024;
/// Most entries of a list in one answer.
pub(super) const LIMIT_MAX: usize = 100_000;

/// A parameter that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ParamError {
    #[error("{name} is {value:?}, allowed is {allowed}")]
    Value { name: &'static str, value: String, allowed: String },
    #[error("the query of the request cannot be read: {0}")]
    Query(String),
}

impl IntoResponse for ParamError {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, format!("{self}\n")).into_response()
    }
}

/// The parameters of a request; names that nobody asks for are ignored.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ParamError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ParamError> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(rejection) => Err(ParamError::Query(rejection.body_text())),
        }
    }
}

impl Params {
    /// A parameter; an empty one counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, value)| known == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// A parameter read by `parse`, or its default.
    pub(super) fn read<T>(
        &self,
        name: &'static str,
        allowed: impl FnOnce() -> String,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ParamError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let error = || ParamError::Value { name, value: value.to_owned(), allowed: allowed() };
        parse(value).map(Some).ok_or_else(error)
    }

    /// A parameter that is on or off, spelled as nats-server takes it.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool, ParamError> {
        Ok(self.read(name, || "1, true, 0 or false".to_owned(), truth)?.unwrap_or(false))
    }

    /// A list that is asked for or not, with details or without.
    pub(super) fn list(&self, name: &'static str) -> Result<List, ParamError> {
        let lists = || "detail, 1, true, 0 or false".to_owned();
        let list = self.read(name, lists, |value| match value {
            value if value.eq_ignore_ascii_case("detail") => Some(List::Detail),
            value => truth(value).map(|on| if on { List::Plain } else { List::No }),
        })?;
        Ok(list.unwrap_or(List::No))
    }

    /// `offset` and `limit`; 0 and less stand for the defaults, as on nats-server.
    pub(super) fn page(&self) -> Result<Page, ParamError> {
        let number =
            |name| self.read(name, || "a whole number".to_owned(), |value| value.parse::<i64>().ok());
        let positive = |number: Option<i64>| number.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        Ok(Page {
            offset: positive(number("offset")?).unwrap_or(0),
            limit: positive(number("limit")?).unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX),
        })
    }
}

/// Whether a list is asked for, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    No,
    Plain,
    Detail,
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) offset: usize,
    pub(super) limit: usize,
}

pub(super) fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "True" | "TRUE" => Some(true),
        "0" | "f" | "F" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn pages_have_defaults_and_bounds() {
        let page = |pairs: &[(&str, &str)]| params(pairs).page();
        assert_eq!(page(&[]), Ok(Page { offset: 0, limit: 1024 }));
        assert_eq!(page(&[("limit", "-1"), ("offset", "-5")]), Ok(Page { offset: 0, limit: 1024 }));
        assert_eq!(page(&[("limit", "7"), ("offset", "3")]), Ok(Page { offset: 3, limit: 7 }));
        assert_eq!(page(&[("limit", "99999999")]), Ok(Page { offset: 0, limit: LIMIT_MAX }));
    }

    #[test]
    fn a_bad_value_is_told_with_what_is_allowed() {
        let error = params(&[("limit", "x")]).page().expect_err("x is no number");
        assert_eq!(error.to_string(), "limit is \"x\", allowed is a whole number");
        let error = params(&[("subs", "zz")]).flag("subs").expect_err("zz is no truth value");
        assert_eq!(error.to_string(), "subs is \"zz\", allowed is 1, true, 0 or false");
    }
}
