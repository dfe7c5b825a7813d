//! SIGHUP: what the configuration file says now is put in force, as far as a running server can change; the texts are
//! nats-server's.

use std::error::Error;
use std::path::PathBuf;

use trunkline_server::{Limits, ReloadOptions, Server};

use super::files::OwnFile;
use super::flags::Flags;
use super::log::Log;
use super::serve;
use super::settings::{Listen, LogSettings, Settings, describe, shown_duration};

/// Puts the file in force: all of it, or nothing. `ports` is the file with the ports.
///
/// # Errors
/// What is wrong with the file, or what in it has changed that only a new server can have.
pub(super) async fn reload(
    flags: &Flags,
    old: &Settings,
    log: &Log,
    server: &Server,
    ports: &mut Option<OwnFile>,
) -> Result<Settings, Box<dyn Error>> {
    if flags.config.is_none() {
        return Err("can only reload config when a file is provided using -c or --config".into());
    }
    let new = Settings::load(flags)?;
    if new.is_nothing_said {
        // A file that is being written is empty for a moment, and an empty one lets everybody in.
        return Err("config has no values or is empty".into());
    }
    if let Some(change) = fixed(old, &new, server) {
        return Err(format!("config reload not supported for {change}").into());
    }
    let websocket_tls = new.websocket.as_ref().and_then(|web| web.tls.clone());
    let options = ReloadOptions {
        auth: new.auth.clone(),
        limits: new.limits.clone(),
        tls: new.tls.clone(),
        websocket_tls,
        tags: new.tags.clone(),
        metadata: new.metadata.clone(),
        advertise: new.advertise.clone(),
    };
    let reloaded = server.reload_all(options).await.map_err(|error| crate::failure::chain(&error))?;
    if reloaded.closed > 0 {
        log.info(&format!("Closed {} connections to fall within max_connections", reloaded.closed));
    }
    for change in changes(old, &new) {
        log.info(&format!("Reloaded: {change}"));
    }
    write_files(old, &new, log, server, ports);
    if let Err(error) = log.change(&new.log) {
        let path = path_of(&new.log.file);
        log.error(&format!("Failed to open the log file: open {path}: {}", describe(&error)));
    }
    let sha256 = new.file.as_ref().map_or("", |file| &file.sha256);
    log.info(&format!("Reloaded server configuration (sha256:{sha256})"));
    Ok(new)
}

/// Files that have another place now.
fn write_files(old: &Settings, new: &Settings, log: &Log, server: &Server, ports: &mut Option<OwnFile>) {
    if old.pid_file != new.pid_file
        && let Some(path) = &new.pid_file
        && let Err(error) = super::files::write_pid(path)
    {
        let path = path.display();
        log.error(&format!("Failed to write pidfile: open {path}: {}", describe(&error)));
    }
    if old.ports_file_dir != new.ports_file_dir {
        // The former one goes first: it may be the same file by another name of its directory.
        *ports = None;
        *ports = serve::write_ports(new, server, log);
    }
}

fn path_of(path: &Option<PathBuf>) -> String {
    path.as_ref().map_or_else(String::new, |path| path.display().to_string())
}

/// What has changed and is in force now.
fn changes(old: &Settings, new: &Settings) -> Vec<String> {
    let (was, is) = (&old.limits, &new.limits);
    let tls_on = |settings: &Settings| if settings.tls.is_some() { "enabled" } else { "disabled" };
    let tls_timeout = |settings: &Settings| settings.tls.as_ref().map(|tls| tls.timeout);
    let mut told = Vec::new();
    let mut tell = |changed: bool, text: String| {
        if changed {
            told.push(text);
        }
    };
    tell(old.advertise != new.advertise, format!("client_advertise = {}", advertised(new)));
    tell(
        old.auth.users != new.auth.users || old.auth.default_permissions != new.auth.default_permissions,
        "authorization users".to_owned(),
    );
    tell(old.tags != new.tags, "tags".to_owned());
    tell(old.metadata != new.metadata, "metadata".to_owned());
    tell(old.auth.token != new.auth.token, "authorization token".to_owned());
    tell(old.auth.accounts != new.auth.accounts, "accounts".to_owned());
    tell(old.auth.no_auth_user != new.auth.no_auth_user, "no_auth_user".to_owned());
    tell(
        old.auth.timeout != new.auth.timeout,
        format!("authorization timeout = {}", new.auth.timeout.as_secs_f64()),
    );
    // The files may have other certificates, which nobody compares.
    tell(old.tls.is_some() || new.tls.is_some(), format!("tls = {}", tls_on(new)));
    if let (Some(former), Some(timeout)) = (tls_timeout(old), tls_timeout(new)) {
        tell(former != timeout, format!("tls timeout = {}", timeout.as_secs_f64()));
    }
    tell(was.max_payload != is.max_payload, format!("max_payload = {}", is.max_payload));
    tell(was.max_control_line != is.max_control_line, format!("max_control_line = {}", is.max_control_line));
    tell(
        was.max_connections != is.max_connections,
        format!("max_connections = {}", i64::try_from(is.max_connections).unwrap_or(-1)),
    );
    tell(
        was.ping_interval != is.ping_interval,
        format!("ping_interval = {}", shown_duration(is.ping_interval)),
    );
    tell(was.ping_max != is.ping_max, format!("ping_max = {}", is.ping_max));
    tell(
        was.write_deadline != is.write_deadline,
        format!("write_deadline = {}", shown_duration(is.write_deadline)),
    );
    let (duration, grace) = (new.lame_duck.duration, new.lame_duck.grace_period);
    tell(old.lame_duck.duration != duration, format!("lame_duck_duration = {}", shown_duration(duration)));
    tell(old.lame_duck.grace_period != grace, format!("lame_duck_grace_period = {}", shown_duration(grace)));
    let LogSettings { file, time, utc, debug, trace, trace_headers, traced_bytes_max, rotation: _ } =
        &new.log;
    tell(old.log.debug != *debug, format!("debug = {debug}"));
    tell(old.log.trace != *trace, format!("trace = {trace}"));
    tell(old.log.trace_headers != *trace_headers, format!("trace_headers = {trace_headers}"));
    tell(old.log.traced_bytes_max != *traced_bytes_max, format!("max_traced_msg_len = {traced_bytes_max}"));
    tell(old.log.time != *time, format!("logtime = {time}"));
    tell(old.log.utc != *utc, format!("logtime_utc = {utc}"));
    tell(old.log.file != *file, format!("log_file = {}", path_of(file)));
    tell(old.pid_file != new.pid_file, format!("pid_file = {}", path_of(&new.pid_file)));
    tell(
        old.ports_file_dir != new.ports_file_dir,
        format!("ports_file_dir = {}", path_of(&new.ports_file_dir)),
    );
    told
}

/// The first thing that has changed and that only a new server can have, by the name that nats-server has for it.
fn fixed(old: &Settings, new: &Settings, server: &Server) -> Option<String> {
    fn differs(name: &str, old: impl ToString, new: impl ToString) -> Option<String> {
        let (old, new) = (old.to_string(), new.to_string());
        (old != new).then(|| format!("{name}: old={old}, new={new}"))
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let host = |listen: &Option<Listen>| text(&listen.as_ref().and_then(|listen| listen.host.clone()));
    // As it is given: -1 is any free one.
    let port = |listen: &Option<Listen>| match listen.as_ref().map(|listen| listen.port) {
        None => 0,
        Some(0) => -1,
        Some(port) => i32::from(port),
    };
    let bound = server.nats_addr().port();
    let nats = |settings: &Settings| if settings.port == 0 { bound } else { settings.port };
    let most = |count: usize| if count == usize::MAX { 0 } else { count };
    let tokens = |limits: &Limits| limits.max_subscription_tokens.unwrap_or_default();
    let rate =
        |settings: &Settings| settings.tls.as_ref().and_then(|tls| tls.handshake_rate).unwrap_or_default();
    let (was, is) = (&old.limits, &new.limits);
    differs("Host", text(&old.host), text(&new.host))
        .or_else(|| differs("Port", nats(old), nats(new)))
        .or_else(|| differs("HTTPHost", host(&old.http), host(&new.http)))
        .or_else(|| differs("HTTPPort", port(&old.http), port(&new.http)))
        .or_else(|| differs("HTTPHost", host(&old.https), host(&new.https)))
        .or_else(|| differs("HTTPSPort", port(&old.https), port(&new.https)))
        .or_else(|| differs("ServerName", text(&old.name), text(&new.name)))
        .or_else(|| differs("MaxSubs", most(was.max_subscriptions), most(is.max_subscriptions)))
        .or_else(|| differs("MaxSubTokens", tokens(was), tokens(is)))
        .or_else(|| differs("MaxClosedClients", was.closed_connections, is.closed_connections))
        .or_else(|| differs("HTTPBasePath", &old.http_base_path, &new.http_base_path))
        .or_else(|| differs("NoHeaderSupport", !old.headers, !new.headers))
        .or_else(|| differs("TLSRateLimit", rate(old), rate(new)))
        .or_else(|| differs("MaxPending", was.max_pending, is.max_pending))
        .or_else(|| differs("LogSizeLimit", old.log.rotation.bytes_max, new.log.rotation.bytes_max))
        .or_else(|| differs("LogMaxFiles", old.log.rotation.files_max, new.log.rotation.files_max))
        .or_else(|| differs("AllowNonTLS", old.allow_non_tls, new.allow_non_tls))
        .or_else(|| {
            let (old, new) = (websocket(old), websocket(new));
            (old != new).then(|| format!("Websocket: old={{{old}}}, new={{{new}}}"))
        })
}

fn advertised(settings: &Settings) -> String {
    let Some(advertised) = &settings.advertise else { return String::new() };
    format!("{}:{}", advertised.host, advertised.port.unwrap_or_default())
}

/// What of the section stays as it was at the start, which is all but the certificates.
fn websocket(settings: &Settings) -> String {
    let Some(web) = &settings.websocket else { return String::new() };
    format!(
        "listen {}:{} no_tls {} same_origin {} allowed_origins {:?} handshake_timeout {} ping_interval {}",
        web.listen.host.as_deref().unwrap_or_default(),
        web.listen.port,
        web.tls.is_none(),
        web.same_origin,
        web.allowed_origins,
        shown_duration(web.handshake_timeout),
        settings.limits.websocket_ping_interval.map(shown_duration).unwrap_or_default()
    )
}
