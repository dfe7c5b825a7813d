//! What a server refused a command for.
//!
//! Up to Redis 6.2 whatever goes wrong within a script is an `ERR`, with the code of the command somewhere in the text;
//! from 7.0 on the script has the code of its command.

use redis::ServerError;

/// How the text of an error within a script begins up to Redis 6.2; behind the last of these places stands what the
/// command said.
const IN_SCRIPT: &str = "Error running script";
const PLACE: &str = "@user_script: ";

/// The code of an error, such as `OOM`: that of the command in the script, where there is one.
pub(super) fn code(error: &ServerError) -> &str {
    within_script(error.code(), error.details().unwrap_or_default())
}

/// Whether a refusal is about how the server is now, so that the same command may soon be carried out, there or elsewhere.
pub(super) fn is_passing(error: &ServerError) -> bool {
    matches!(
        code(error),
        "LOADING"
            | "BUSY"
            | "READONLY"
            | "MASTERDOWN"
            | "UNBLOCKED"
            | "MOVED"
            | "ASK"
            | "TRYAGAIN"
            | "CLUSTERDOWN"
    )
}

fn within_script<'a>(code: &'a str, text: &'a str) -> &'a str {
    if code != "ERR" || !text.starts_with(IN_SCRIPT) {
        return code;
    }
    let Some((_, said)) = text.rsplit_once(PLACE) else { return code };
    // Behind the place stand the line and what was said, which begins with a minus where the command was refused.
    let said = said.split_once(": ").map_or(said, |(_line, said)| said);
    if said.starts_with("The user executing the script can't") {
        return "NOPERM";
    }
    said.strip_prefix('-').and_then(|said| said.split(' ').next()).unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::within_script;

    #[test]
    fn code_of_the_command_is_found_in_the_error_of_a_script() {
        let at = "Error running script (call to f_80cda2252b7ff67f43d6261e5a2015be56c32daf): @user_script:1: @user_script: 1: ";
        for (code, text, expected) in [
            ("ERR", format!("{at}-OOM command not allowed when used memory > 'maxmemory'."), "OOM"),
            ("ERR", format!("{at}-READONLY You can't write against a read only replica."), "READONLY"),
            (
                "ERR",
                format!("{at}-MISCONF Errors writing to the AOF file: No space left on device"),
                "MISCONF",
            ),
            (
                "ERR",
                format!("{at}The user executing the script can't run this command or subcommand"),
                "NOPERM",
            ),
            ("ERR", format!("{at}Wrong number of args calling Redis command From Lua script"), "ERR"),
            (
                "ERR",
                "Error running script (call to f_45): @user_script:1: WRONGTYPE Operation".to_owned(),
                "ERR",
            ),
            ("ERR", "unknown command".to_owned(), "ERR"),
            ("OOM", "command not allowed when used memory > 'maxmemory'.".to_owned(), "OOM"),
            ("STALE", "the routes have changed".to_owned(), "STALE"),
        ] {
            assert_eq!(within_script(code, &text), expected, "{code} {text}");
        }
    }
}
