//! What `up` says once it runs: where it is, what it runs on, what to try next.

use std::borrow::Cow;

use anstyle::{AnsiColor, Style};
use trunkline::config::{Config, Loaded, Origin};
use trunkline::status::BackendState;
use trunkline_server::AuthOptions;

use super::start::Running;
use crate::admin::dashboard_url;

const NAME: Style = AnsiColor::Cyan.on_default().bold();
const WARNING: Style = AnsiColor::Yellow.on_default().bold();
const DIM: Style = Style::new().dimmed();

/// The banner, some lines long.
pub(super) fn text(loaded: &Loaded, running: &Running, demo: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let status = running.bus().status().backend;
    let url = match running.nats_addr() {
        Some(address) => format!("nats://{address}"),
        None => loaded.config.messaging.nats_url.to_string(),
    };
    let url_line = match running.websocket_url() {
        Some(websocket) => format!("{url}\n  websocket {websocket}"),
        None => url.clone(),
    };
    let http = running.http_url().unwrap_or_else(|| "not served".to_owned());
    let http_line = match running.metrics_url() {
        Some(metrics) => format!("{http}\n  metrics   {metrics}/metrics"),
        None => http,
    };
    let is_configured = loaded.config.server.auth.admin_token.is_some();
    let token = match running.admin_token() {
        // Its owner knows it, and a log may be read by others.
        Some(_) if is_configured => "as configured (server.auth.admin_token)".to_owned(),
        Some(token) => format!("{token} {DIM}(admin API){DIM:#}"),
        None => "no admin API".to_owned(),
    };
    let dashboard = match (running.http_url(), running.admin_token()) {
        (Some(http), Some(token)) => dashboard_url(&http, Some(token).filter(|_| !is_configured)),
        _ => "not served".to_owned(),
    };
    let backend = match &status.state {
        BackendState::Connected => format!("{} ({})", status.backend, status.server),
        state => {
            let reason = state.reason().unwrap_or("no reason is known");
            format!("{} {WARNING}{}{WARNING:#}: {reason}", status.backend, state.as_str())
        }
    };
    let file = match &loaded.file {
        Some(path) => path.display().to_string(),
        None => "defaults, no file".to_owned(),
    };
    let auth = AuthOptions::from(&loaded.config.server);
    let asks = running.nats_addr().is_some() && auth.is_required() && auth.no_auth_user.is_none();
    let joined = match asks {
        true => url.replacen("://", "://USER:PASSWORD@", 1),
        false => url,
    };
    let configured = running.nats_addr().is_none() && is_known_there(&loaded.config);
    // The flag is left out where clients find the bus without it. Where an address alone would not let them in, they read
    // what this one has read: the credentials are for no log.
    let flag = match (joined.as_str(), &loaded.file) {
        (_, Some(path)) if configured => format!(" --config {}", quoted(&path.to_string_lossy())),
        (_, None) if configured => String::new(),
        ("nats://127.0.0.1:4222", _) => String::new(),
        (url, _) => format!(" --url {url}"),
    };
    // What a flag has said here nothing would say there.
    let by_flag = matches!(loaded.origin("messaging.backend"), Origin::Flag(_));
    let variable = if configured && by_flag { "TRUNKLINE_BACKEND=nats " } else { "" };
    let demo_command = match configured {
        true => format!("{variable}trunkline up --demo{flag}"),
        false => format!("TRUNKLINE_URL={joined} trunkline up --demo"),
    };
    let root = &loaded.config.messaging.subject_root;
    // A demo of its own would want the ports that this one has; joined to it, everybody sees its conversations.
    let next = match demo {
        true => format!("{variable}trunkline sub '{root}.>'{flag}"),
        false => format!(
            "{variable}trunkline sub '{root}.>'{flag}\n            {variable}trunkline pub {root}.channel.web.inbound hello{flag}\n            {demo_command}"
        ),
    };
    format!(
        "{NAME}trunkline {version}{NAME:#} is ready\n  \
         clients   {url_line}\n  \
         http      {http_line}\n  \
         token     {token}\n  \
         dashboard {dashboard}\n  \
         backend   {backend}\n  \
         config    {file}\n  \
         try next  {next}\n  \
         {DIM}Ctrl-C stops it{DIM:#}"
    )
}

/// Whether the configuration says beside the address of the NATS servers who the bus is to them, or whom it trusts.
fn is_known_there(config: &Config) -> bool {
    let (messaging, default) = (&config.messaging, Config::default().messaging);
    messaging.nats_url.has_credentials()
        || messaging.nats_auth != default.nats_auth
        || messaging.nats_tls != default.nats_tls
}

/// A word as a shell takes it.
fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |character: char| character.is_ascii_alphanumeric() || "/._-+,:@=".contains(character);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_a_shell_takes_them_for() {
        for (word, shown) in [
            ("config.yaml", "config.yaml"),
            ("/etc/trunkline/a-b_c.yaml", "/etc/trunkline/a-b_c.yaml"),
            ("my config.yaml", "'my config.yaml'"),
            ("it's.yaml", r"'it'\''s.yaml'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), shown);
        }
    }
}
