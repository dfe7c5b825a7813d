//! The JSON of CONNECT.

use trunkline_protocol::{ClientOp, ConnectOptions, Limits, Parsed, client, parse};

/// What was understood can be written and is understood again; and no secret is shown.
pub(crate) fn connect(data: &[u8]) {
    let Ok(options) = ConnectOptions::parse(data) else { return };
    let mut line = Vec::new();
    client::connect(&mut line, &options);
    let limits = Limits { max_control_line: line.len(), ..Limits::default() };
    let Ok(Parsed::Op(ClientOp::Connect(json), taken)) = parse(&line, &limits) else {
        panic!("not read again: {:?}", line.escape_ascii().to_string());
    };
    assert_eq!(taken, line.len());
    let again = ConnectOptions::parse(json).expect("what was written is JSON");
    assert!(again == options, "{options:?} became {again:?}");
    let shown = format!("{options:?}");
    // Long enough not to be part of something else that is shown.
    for secret in [&options.pass, &options.auth_token, &options.sig, &options.jwt].into_iter().flatten() {
        let is_known =
            [&options.user, &options.name, &options.lang, &options.version, &options.nkey, &options.account]
                .into_iter()
                .flatten()
                .any(|other| format!("{other:?}").contains(secret.as_str()));
        assert!(secret.len() < 24 || is_known || !shown.contains(secret.as_str()), "{shown}");
    }
}
