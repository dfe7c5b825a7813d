//! The questions at a terminal: arrow keys, a default for everything, and each choice explained in a line.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use dialoguer::console::Term;
use dialoguer::theme::ColorfulTheme;
use dialoguer::{Confirm, Input, Password, Select};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use trunkline::config::{Backend, NatsUrl, RedisUrl};

use super::answers::{Answers, NATS_URL, Preset, REDIS_URL, check, escaped, variable};
use super::{InitArgs, InitError, document};
use crate::failure::{Failure, chain};

/// How the terminal was before the questions. A question that is broken off leaves it as it needed it itself.
pub(super) struct Terminal(Termios);

impl Terminal {
    /// Remembers it.
    ///
    /// # Errors
    /// stdin is no terminal.
    pub(super) fn keep() -> io::Result<Self> {
        Ok(Self(tcgetattr(io::stdin())?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that is gone needs nothing.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
        let _ = Term::stderr().show_cursor();
    }
}

fn broken(dialoguer::Error::IO(error): dialoguer::Error) -> InitError {
    match error.kind() {
        // Ctrl-C, or Ctrl-D on an empty line.
        io::ErrorKind::Interrupted | io::ErrorKind::UnexpectedEof => InitError::BrokenOff,
        _ => InitError::Terminal(error),
    }
}

/// Asks for everything that no flag says, shows the file and asks whether it is right.
///
/// # Errors
/// The questions were broken off, or the terminal is gone.
pub(super) fn ask(args: &InitArgs, path: &Path) -> Result<Answers, Failure> {
    let theme = ColorfulTheme::default();
    let items = Preset::ALL.map(|preset| format!("{:<10}  {}", preset.name(), preset.explained()));
    let chosen = Select::with_theme(&theme)
        .with_prompt("What is this bus for? (arrow keys, Enter)")
        .items(items)
        .default(0)
        .interact()
        .map_err(broken)?;
    let preset = Preset::ALL[chosen];
    let mut answers = Answers::from_flags(preset, args)?;
    match preset.backend() {
        Backend::InMemory => {}
        Backend::Redis => redis(&theme, args, &mut answers)?,
        Backend::Nats => nats(&theme, args, &mut answers)?,
    }
    if preset.backend() != Backend::InMemory && args.stream_prefix.is_none() {
        let prompt = "Prefix of all keys and streams there, one for each installation";
        answers.stream_prefix = text(&theme, prompt, &answers.stream_prefix, "messaging.stream_prefix")?;
    }
    let prompt = "First token of the platform's subjects";
    answers.subject_root = text(&theme, prompt, &answers.subject_root, "messaging.subject_root")?;
    if preset.backend() != Backend::Nats {
        answers.listen = address(&theme, "Address for NATS clients, on this machine", answers.listen)?;
        answers.http =
            address(&theme, "Address for health, metrics and the admin API, on this machine", answers.http)?;
    }
    crate::output::note(&format!("\n{}", document::text(&answers)));
    let prompt = format!("Write this to {}?", path.display());
    match Confirm::with_theme(&theme).with_prompt(prompt).default(true).interact().map_err(broken)? {
        true => Ok(answers),
        false => Err(InitError::BrokenOff.into()),
    }
}

fn redis(theme: &ColorfulTheme, args: &InitArgs, answers: &mut Answers) -> Result<(), Failure> {
    if args.redis_url.is_some() {
        return Ok(());
    }
    if variable("REDIS_URL").is_some() && uses_variable(theme, "REDIS_URL")? {
        return Ok(());
    }
    let url = text(theme, "Where is Redis? rediss:// is TLS", REDIS_URL, "messaging.redis_url")?;
    let has_credentials =
        RedisUrl::parse(&url).is_ok_and(|url| url.username.is_some() || url.password.is_some());
    answers.secrets.clear();
    if has_credentials {
        answers.redis(&url);
        return Ok(());
    }
    let (user, password) = credentials(theme, "Redis")?;
    match (user.as_str(), password.as_str()) {
        ("", "") => answers.redis(&url),
        (user, password) => {
            let colon = if password.is_empty() { "" } else { ":" };
            let who = format!("://{}{colon}{}@", escaped(user), escaped(password));
            answers.redis(&url.replacen("://", &who, 1));
        }
    }
    Ok(())
}

fn nats(theme: &ColorfulTheme, args: &InitArgs, answers: &mut Answers) -> Result<(), Failure> {
    let is_given =
        args.nats_url.is_some() || variable("NATS_URL").is_some() && uses_variable(theme, "NATS_URL")?;
    if !is_given {
        let prompt = "Where is NATS? Servers of one cluster separated by commas, tls:// is TLS";
        let url = text(theme, prompt, NATS_URL, "messaging.nats_url")?;
        answers.secrets.clear();
        answers.nats(&url);
        if !NatsUrl::parse(&url).is_ok_and(|url| url.has_credentials()) {
            let (user, password) = credentials(theme, "NATS")?;
            if !user.is_empty() && !password.is_empty() {
                answers.nats_user(user, password);
            }
        }
    }
    let copies = [1, 3, 5];
    let items = [
        "1  one server",
        "3  a cluster of three or more: survives the loss of one",
        "5  survives the loss of two",
    ];
    let given = copies.iter().position(|copies| *copies == args.replicas).unwrap_or(0);
    let chosen = Select::with_theme(theme)
        .with_prompt("Copies of each stream")
        .items(items)
        .default(given)
        .interact()
        .map_err(broken)?;
    answers.replicas = copies[chosen];
    Ok(())
}

fn uses_variable(theme: &ColorfulTheme, name: &str) -> Result<bool, InitError> {
    let prompt = format!("{name} is set here. Leave it to that variable to say where it is?");
    Confirm::with_theme(theme).with_prompt(prompt).default(true).interact().map_err(broken)
}

/// A user and its password, both empty for none. The password is neither shown nor written to the file.
fn credentials(theme: &ColorfulTheme, server: &str) -> Result<(String, String), InitError> {
    let user: String = Input::with_theme(theme)
        .with_prompt(format!("User of {server}, empty for none"))
        .allow_empty(true)
        .interact_text()
        .map_err(broken)?;
    let password = Password::with_theme(theme)
        .with_prompt("Its password, empty for none (it goes into no file)")
        .allow_empty_password(true)
        .interact()
        .map_err(broken)?;
    Ok((user.trim().to_owned(), password))
}

/// A value of a key, asked for until it is one.
fn text(theme: &ColorfulTheme, prompt: &str, default: &str, key: &str) -> Result<String, InitError> {
    Input::with_theme(theme)
        .with_prompt(prompt)
        .default(default.to_owned())
        .validate_with(|text: &String| check(key, text, "this").map_err(|error| chain(&error)))
        .interact_text()
        .map_err(broken)
}

fn address(theme: &ColorfulTheme, prompt: &str, default: SocketAddr) -> Result<SocketAddr, InitError> {
    let here = |address: &SocketAddr| match address.ip().is_loopback() {
        true => Ok(()),
        false => {
            Err("other machines need users and TLS first: take 127.0.0.1 now, then see docs/security.md")
        }
    };
    Input::with_theme(theme)
        .with_prompt(prompt)
        .default(default)
        .validate_with(here)
        .interact_text()
        .map_err(broken)
}
