//! Who may use the admin API: whoever has the token, a user that is allowed to, and no page of another site.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq as _;
use trunkline_protocol::ConnectOptions;

use super::Api;
use super::answer::ApiError;
use crate::admin::{BASE, Problem};
use crate::auth::{Answer, Connection, Failure, TokenGuesses};
use crate::http::serve::Peer;
use crate::refusals::HttpRefusal;

/// What browsers say of where a request comes from, beside its origin.
const SEC_FETCH_SITE: &str = "sec-fetch-site";
/// From a page of this server, or from the person alone.
const FROM_HERE: [&[u8]; 2] = [b"same-origin", b"none"];

/// Random bytes of a token that the server makes.
const TOKEN_BYTES: usize = 24;

/// The system gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes: {0}")]
pub(crate) struct TokenError(getrandom::Error);

/// The token of the admin API.
#[derive(Clone)]
pub(crate) struct Token {
    text: String,
    /// It is as random as it is long, so that nobody guesses it.
    is_made: bool,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Token {
    /// The configured token, or a new one.
    pub(crate) fn new(configured: Option<String>) -> Result<Self, TokenError> {
        if let Some(token) = configured {
            return Ok(Self { text: token, is_made: false });
        }
        let mut bytes = [0; TOKEN_BYTES];
        getrandom::fill(&mut bytes).map_err(TokenError)?;
        Ok(Self { text: URL_SAFE_NO_PAD.encode(bytes), is_made: true })
    }

    pub(crate) fn expose(&self) -> &str {
        &self.text
    }

    /// Whether it could be guessed, by a request with these headers. A token that a person has made up can be. One that was
    /// made cannot, and nobody can lock out who has it.
    fn is_guessable(&self, headers: &HeaderMap) -> bool {
        !self.is_made && bearer(headers).is_some()
    }

    /// Compares in a time that does not tell how much is right.
    fn is(&self, given: &[u8]) -> bool {
        self.text.as_bytes().ct_eq(given).into()
    }
}

/// Before every handler of the API. That the name of the host is the loopback's has been checked by then.
pub(super) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let peer = peer_of(&request);
    match admit(&api, request.headers(), peer).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refused) => {
            api.auth.refusals.count_http(refused.why());
            let (path, error) = (format!("{BASE}{}", request.uri().path()), refused.to_string());
            match api.auth.refusals.may_tell(Instant::now()) {
                true => tracing::warn!(address = %peer, path, error, "a request to the admin API is refused"),
                false => {
                    tracing::debug!(address = %peer, path, error, "a request to the admin API is refused")
                }
            }
            ApiError::from(refused).into_response()
        }
    }
}

/// Who may use the API by what the headers of a request from `peer` say.
async fn admit(api: &Api, headers: &HeaderMap, peer: IpAddr) -> Result<Caller, Refused> {
    let auth = &api.auth.auth;
    let is_guessable = api.token.is_guessable(headers);
    if is_guessable && !auth.may_open_admin(peer) {
        return Err(Refused::TooMany);
    }
    match check(&api.token, headers) {
        Ok(Allowed::Yes) => Ok(Caller::Token),
        Ok(Allowed::If(user)) => check_user(api, &user, peer).await.map(|()| Caller::User),
        Err(refused) => {
            if is_guessable && matches!(refused, Refused::Token) {
                auth.admin_failed(peer);
            }
            Err(refused)
        }
    }
}

/// Why a request may not use the API.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("pages of {0} may not use the admin API")]
    Origin(String),
    #[error("pages of other sites may not use the admin API, and the browser says {0}")]
    Site(String),
    #[error("the admin API needs a token")]
    Nothing,
    #[error("this token is not the server's admin token")]
    Token,
    #[error("there is no such user with this password")]
    User,
    #[error("too many tokens or passwords from this address were wrong: try again in a minute")]
    TooMany,
    #[error("too many passwords are being checked: try again in a moment")]
    Busy,
    #[error("this user may not use the admin API (server.users[].admin)")]
    NotAdmin,
}

impl Refused {
    fn why(&self) -> HttpRefusal {
        match self {
            Self::Origin(_) | Self::Site(_) => HttpRefusal::Origin,
            Self::Nothing | Self::Token | Self::User => HttpRefusal::Credentials,
            Self::TooMany | Self::Busy => HttpRefusal::TooMany,
            Self::NotAdmin => HttpRefusal::NotAdmin,
        }
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let problem = match refused.why() {
            HttpRefusal::Origin | HttpRefusal::Host => Problem::ForeignOrigin,
            HttpRefusal::Credentials | HttpRefusal::TooMany => Problem::Unauthorized,
            HttpRefusal::NotAdmin => Problem::Denied { reason: refused.to_string() },
        };
        ApiError::new(problem, refused)
    }
}

/// Who was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Whoever has the token, who may see all accounts.
    Token,
    /// A user, who is one of the global account.
    User,
}

/// The same where there are no users, and the token alone opens.
pub(crate) async fn token_guard(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    match door.admit(request.headers(), peer_of(&request)) {
        Ok(Allowed::Yes) => {
            request.extensions_mut().insert(Caller::Token);
            next.run(request).await
        }
        Ok(Allowed::If(_)) => {
            ApiError::new(Problem::Unauthorized, "users are those of the NATS servers; give the token")
                .into_response()
        }
        Err(refused) => ApiError::from(refused).into_response(),
    }
}

/// The token, and how often it was guessed.
#[derive(Debug, Clone)]
pub(crate) struct Door {
    token: Token,
    guesses: Arc<TokenGuesses>,
}

impl Door {
    /// `failures_max` are the wrong tokens of one address within a minute that are looked at.
    pub(crate) fn new(token: Token, failures_max: Option<u32>) -> Self {
        Self { token, guesses: Arc::new(TokenGuesses::new(failures_max)) }
    }

    fn admit(&self, headers: &HeaderMap, peer: IpAddr) -> Result<Allowed, Refused> {
        let is_guessable = self.token.is_guessable(headers);
        if is_guessable && !self.guesses.may_guess(peer) {
            return Err(Refused::TooMany);
        }
        let admitted = check(&self.token, headers);
        if is_guessable && matches!(admitted, Err(Refused::Token)) {
            self.guesses.failed(peer);
        }
        admitted
    }
}

/// Where a request comes from.
fn peer_of(request: &Request) -> IpAddr {
    request.extensions().get::<Peer>().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0)
}

/// What a request's headers say of who sends it.
#[derive(Debug)]
enum Allowed {
    /// It has the token.
    Yes,
    /// It has the name and password of a user, who may be allowed to.
    If(Box<ConnectOptions>),
}

/// Whether a user may use the API. Its password is checked as that of a client is, and failures count with those.
async fn check_user(api: &Api, user: &ConnectOptions, peer: IpAddr) -> Result<(), Refused> {
    let auth = &api.auth.auth;
    let identity = match auth.check(user, Connection { nonce: None, secured: None, kind: None }, peer) {
        Answer::Granted(identity) => Ok(identity),
        Answer::Verify(verification) => {
            // Whoever waits for a hash keeps its connection, of which there are few: some are to be left to probes.
            let Ok(_place) = api.verifying.try_acquire() else { return Err(Refused::Busy) };
            let verified = tokio::time::timeout(auth.configured_timeout(), auth.verify(verification)).await;
            verified.unwrap_or(Err(Failure::Timeout))
        }
        Answer::Refused(why) => Err(why),
    };
    match identity {
        Ok(identity) if identity.admin => Ok(()),
        Ok(_) => Err(Refused::NotAdmin),
        Err(why) => {
            auth.count_failure(why);
            Err(match why {
                Failure::TooMany => Refused::TooMany,
                Failure::Timeout => Refused::Busy,
                Failure::Credentials | Failure::Revoked => Refused::User,
            })
        }
    }
}

fn check(token: &Token, headers: &HeaderMap) -> Result<Allowed, Refused> {
    let host = headers.get(header::HOST);
    if let Some(origin) = headers.get_all(header::ORIGIN).iter().find(|origin| !is_same(origin, host)) {
        return Err(Refused::Origin(String::from_utf8_lossy(origin.as_bytes()).into_owned()));
    }
    // Browsers say it also where they name no origin, such as for an image; programs do not say it at all.
    if let Some(site) =
        headers.get_all(SEC_FETCH_SITE).iter().find(|site| !FROM_HERE.contains(&site.as_bytes()))
    {
        return Err(Refused::Site(String::from_utf8_lossy(site.as_bytes()).into_owned()));
    }
    let given = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
    if let Some(user) = given.and_then(basic) {
        return Ok(Allowed::If(Box::new(user)));
    }
    match bearer(headers) {
        Some(bearer) if token.is(bearer) => Ok(Allowed::Yes),
        Some(_) => Err(Refused::Token),
        None => Err(Refused::Nothing),
    }
}

/// The token of `Authorization: Bearer`, where there is one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, rest) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)
}

/// Name and password of `Authorization: Basic`, where there are any.
fn basic(given: &[u8]) -> Option<ConnectOptions> {
    let (scheme, rest) = given.split_at_checked(6)?;
    let decoded = STANDARD.decode(rest).ok().filter(|_| scheme.eq_ignore_ascii_case(b"basic "))?;
    let text = String::from_utf8(decoded).ok()?;
    let (name, password) = text.split_once(':').filter(|(name, _)| !name.is_empty())?;
    let (user, pass) = (Some(name.to_owned()), Some(password.to_owned()));
    Some(ConnectOptions { user, pass, ..ConnectOptions::default() })
}

/// Whether a page's origin is where it sends the request to.
fn is_same(origin: &header::HeaderValue, host: Option<&header::HeaderValue>) -> bool {
    let (Ok(origin), Some(Ok(host))) = (origin.to_str(), host.map(|host| host.to_str())) else {
        return false;
    };
    origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(pairs: &[(header::HeaderName, &str)]) -> Option<Problem> {
        let token = Token::new(Some("secret".to_owned())).expect("it is given");
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, header::HeaderValue::from_static("localhost:8222"));
        for (name, value) in pairs {
            headers.insert(name, value.parse().expect("a valid value"));
        }
        check(&token, &headers).err().map(|refused| {
            let response = ApiError::from(refused).into_response();
            match response.status().as_u16() {
                401 => Problem::Unauthorized,
                403 => Problem::ForeignOrigin,
                status => panic!("{status}"),
            }
        })
    }

    #[test]
    fn only_the_token_opens() {
        for good in ["Bearer secret", "bearer secret"] {
            assert_eq!(problem(&[(header::AUTHORIZATION, good)]), None, "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer secre", "Bearer secret1", "Basic secret", "secret"] {
            assert_eq!(problem(&[(header::AUTHORIZATION, bad)]), Some(Problem::Unauthorized), "{bad}");
        }
        assert_eq!(problem(&[]), Some(Problem::Unauthorized));
    }

    #[test]
    fn pages_of_other_origins_are_refused_even_with_the_token() {
        let token = (header::AUTHORIZATION, "Bearer secret");
        assert_eq!(problem(&[token.clone(), (header::ORIGIN, "http://localhost:8222")]), None);
        for foreign in ["http://localhost:3000", "http://evil.example", "null", "http://localhost"] {
            let refused = problem(&[token.clone(), (header::ORIGIN, foreign)]);
            assert_eq!(refused, Some(Problem::ForeignOrigin), "{foreign}");
        }
    }

    #[test]
    fn one_foreign_origin_among_several_is_enough_to_be_refused() {
        let token = Token::new(Some("secret".to_owned())).expect("it is given");
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, header::HeaderValue::from_static("localhost:8222"));
        headers.insert(header::AUTHORIZATION, header::HeaderValue::from_static("Bearer secret"));
        headers.append(header::ORIGIN, header::HeaderValue::from_static("http://localhost:8222"));
        assert!(matches!(check(&token, &headers), Ok(Allowed::Yes)));
        headers.append(header::ORIGIN, header::HeaderValue::from_static("http://evil.example"));
        assert!(check(&token, &headers).is_err());
    }

    #[test]
    fn what_a_browser_says_of_the_site_counts_without_an_origin() {
        let site = header::HeaderName::from_static(SEC_FETCH_SITE);
        let token = (header::AUTHORIZATION, "Bearer secret");
        for (said, refused) in [
            ("same-origin", None),
            ("none", None),
            ("cross-site", Some(Problem::ForeignOrigin)),
            ("same-site", Some(Problem::ForeignOrigin)),
            ("", Some(Problem::ForeignOrigin)),
        ] {
            assert_eq!(problem(&[token.clone(), (site.clone(), said)]), refused, "{said:?}");
        }
    }

    #[test]
    fn a_token_that_was_made_up_is_looked_at_so_often_and_one_that_was_made_always() {
        let statuses = |token: Token| {
            let (right, door) = (token.expose().to_owned(), Door::new(token, Some(3)));
            let ask = |given: &str, last: u8| {
                let mut headers = HeaderMap::new();
                headers.insert(header::AUTHORIZATION, format!("Bearer {given}").parse().expect("a value"));
                door.admit(&headers, IpAddr::from([10, 0, 0, last])).is_ok()
            };
            assert!(!["a", "b", "c"].iter().any(|wrong| ask(wrong, 1)));
            [ask(&right, 1), ask(&right, 2)]
        };
        assert_eq!(statuses(Token::new(Some("letmein".to_owned())).expect("it is given")), [false, true]);
        assert_eq!(statuses(Token::new(None).expect("the system has random bytes")), [true, true]);
    }

    #[test]
    fn made_tokens_differ() {
        let token = || Token::new(None).expect("the system has random bytes").expose().to_owned();
        let (one, other) = (token(), token());
        assert!(one.len() >= 32 && one != other, "{one} {other}");
    }
}
