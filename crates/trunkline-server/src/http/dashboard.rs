//! The dashboard: a page and its modules, as they are in this binary.
//!
//! They hold no secret and are served to whoever asks; what they show they get from the admin API, with a token that the
//! person brings. A page that shows what strangers have published needs a policy that holds even where the page is wrong:
//! nothing is executed, loaded or sent but from and to this server, nothing is inline, and no other page can frame it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::LazyLock;

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;

/// What the page may do.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A file of the dashboard.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static str,
    tag: String,
}

macro_rules! assets {
    ($($name:literal: $kind:expr),* $(,)?) => {
        /// All files; the first is the page.
        static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| vec![
            $(Asset::new($name, $kind, include_str!(concat!("../../assets/dashboard/", $name)))),*
        ]);
    };
}

assets! {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "app.js": SCRIPT,
    "api.js": SCRIPT,
    "chart.js": SCRIPT,
    "components.js": SCRIPT,
    "connections.js": SCRIPT,
    "consumers.js": SCRIPT,
    "conversation.js": SCRIPT,
    "conversations.js": SCRIPT,
    "dead-letters.js": SCRIPT,
    "dom.js": SCRIPT,
    "live.js": SCRIPT,
    "overview.js": SCRIPT,
    "sequence.js": SCRIPT,
    "subjects.js": SCRIPT,
    "text.js": SCRIPT,
}

impl Asset {
    fn new(name: &'static str, kind: &'static str, content: &'static str) -> Self {
        let mut hasher = DefaultHasher::new();
        content.hash(&mut hasher);
        Self { name, kind, content, tag: format!("\"{:016x}\"", hasher.finish()) }
    }

    fn answer(&self, asked: &HeaderMap) -> Response {
        let headers: [(HeaderName, &str); 6] = [
            (header::CONTENT_TYPE, self.kind),
            (header::ETAG, &self.tag),
            // Kept, and asked about each time: after an upgrade the page is that of the new server.
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ];
        let known = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        match known.flat_map(|tags| tags.split(',')).any(|tag| tag.trim() == self.tag) {
            true => (StatusCode::NOT_MODIFIED, headers).into_response(),
            false => (headers, self.content).into_response(),
        }
    }
}

/// The routes of the dashboard.
pub(super) fn router() -> Router {
    Router::new()
        .route("/dashboard", get(async |headers: HeaderMap| ASSETS[0].answer(&headers)))
        // The page names its modules relative to itself, so that it also works below the path of a proxy.
        .route("/dashboard/", get(async || Redirect::permanent("../dashboard")))
        .route("/dashboard/{name}", get(asset))
}

async fn asset(Path(name): Path<String>, headers: HeaderMap) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => asset.answer(&headers),
        None => (StatusCode::NOT_FOUND, "there is no such file of the dashboard\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let asset = &ASSETS[0];
        let mut headers = HeaderMap::new();
        assert_eq!(asset.answer(&headers).status(), StatusCode::OK);
        headers.insert(header::IF_NONE_MATCH, format!("\"other\", {}", asset.tag).parse().expect("a tag"));
        assert_eq!(asset.answer(&headers).status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn nothing_of_the_page_is_inline_or_elsewhere_and_no_markup_is_made_of_text() {
        for asset in ASSETS.iter() {
            for wrong in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                " style=\"",
                "https://",
            ] {
                assert!(!asset.content.contains(wrong), "{} has {wrong}", asset.name);
            }
        }
        let page = ASSETS[0].content;
        assert!(!page.contains(" onclick") && !page.contains("<style"), "{page}");
        // Every module that one of them asks for is there.
        for asset in ASSETS.iter().filter(|asset| asset.kind == SCRIPT) {
            for import in asset.content.split("from './").skip(1) {
                let name = import.split('\'').next().unwrap_or_default();
                assert!(ASSETS.iter().any(|asset| asset.name == name), "{} wants {name}", asset.name);
            }
        }
    }
}
