//! The first packets of a PostgreSQL connection, sans-io (PostgreSQL documentation, "Message Formats" and
//! "Start-up"; `ProcessStartupPacket` in `backend_startup.c`).
//!
//! Start-up packets have no type byte: an Int32 length that counts itself, an Int32 code, and a body. A connection begins with
//! at most one SSLRequest and one GSSENCRequest, each answered with one byte, and then a StartupMessage; or it carries one
//! CancelRequest; or, since PostgreSQL 17, it begins with a TLS handshake.

use std::fmt;

/// The code of an SSLRequest.
pub(crate) const SSL_REQUEST: u32 = 80_877_103;
/// The code of a GSSENCRequest.
pub(crate) const GSSENC_REQUEST: u32 = 80_877_104;
/// The code of a CancelRequest.
pub(crate) const CANCEL_REQUEST: u32 = 80_877_102;

/// The longest packet without its length field, `MAX_STARTUP_PACKET_LENGTH` in PostgreSQL.
pub(crate) const MAX_STARTUP_PACKET_LENGTH: usize = 10_000;
/// The longest secret key of a CancelRequest (protocol 3.2; it is 4 bytes long in protocol 3.0).
pub(crate) const MAX_CANCEL_KEY_LENGTH: usize = 256;

/// Length field and code.
const HEADER: usize = 8;
/// The content type of a TLS handshake record (RFC 8446 section 5.1). As the first byte of a length it would be far above the limit.
const TLS_HANDSHAKE: u8 = 0x16;
/// `NAMEDATALEN - 1`: PostgreSQL cuts names there as well.
const SHOWN: usize = 63;

/// A packet that may stand at the beginning of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartupPacket {
    /// Asks for TLS. Answered with one byte, `S` or `N`.
    SslRequest,
    /// Asks for GSSAPI encryption. Answered with one byte, `G` or `N`.
    GssEncRequest,
    /// Asks to cancel the query of another connection. Not answered.
    CancelRequest {
        /// The number that the other connection was told.
        process: u32,
        /// And its secret.
        secret: Vec<u8>,
    },
    /// Begins a session.
    Startup(StartupMessage),
    /// A TLS handshake without an SSLRequest before it.
    DirectTls,
}

impl StartupPacket {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::SslRequest => "ssl_request",
            Self::GssEncRequest => "gssenc_request",
            Self::CancelRequest { .. } => "cancel_request",
            Self::Startup(_) => "startup",
            Self::DirectTls => "direct_tls",
        }
    }
}

/// Name and value of a parameter.
pub type Setting = (Vec<u8>, Vec<u8>);

/// What a StartupMessage says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartupMessage {
    /// The minor version of protocol 3 that is asked for. A server that knows less answers with NegotiateProtocolVersion.
    pub minor: u16,
    /// `user`; empty when it is missing, which the server refuses.
    pub user: Vec<u8>,
    /// `database`; the user's name when it is missing.
    pub database: Vec<u8>,
    /// `application_name`; may be empty.
    pub application_name: Vec<u8>,
    /// All parameters but `user` and `database`, in their order.
    pub parameters: Vec<Setting>,
}

impl StartupMessage {
    /// Whether the client wants to replicate, which is another protocol.
    pub(crate) fn is_replication(&self) -> bool {
        let asks = |value: &[u8]| !matches!(value, b"" | b"false" | b"off" | b"no" | b"0");
        self.parameters.iter().any(|(name, value)| name == b"replication" && asks(value))
    }

    /// The names of protocol options (`_pq_.`), of which none is known.
    pub(crate) fn protocol_options(&self) -> impl Iterator<Item = &[u8]> {
        self.parameters.iter().map(|(name, _)| &name[..]).filter(|name| name.starts_with(b"_pq_."))
    }

    /// The parameters that are set for the session: those of `options` first, as in PostgreSQL (`process_startup_options` in
    /// `postinit.c`), then those that are named.
    ///
    /// # Errors
    /// When `options` holds something else than settings.
    pub(crate) fn given(&self) -> Result<Vec<Setting>, String> {
        let mut given = Vec::new();
        for (_, options) in self.parameters.iter().filter(|(name, _)| name == b"options") {
            settings(options, &mut given)?;
        }
        let special = |name: &[u8]| matches!(name, b"options" | b"replication") || name.starts_with(b"_pq_.");
        given.extend(self.parameters.iter().filter(|(name, _)| !special(name)).cloned());
        Ok(given)
    }
}

/// The settings in a command line, as `pg_split_opts` splits it: words at white space, in which a backslash takes the next character as it
/// is; `-c name=value`, `-cname=value` or `--name=value`, with `-` for `_` in a name.
fn settings(options: &[u8], given: &mut Vec<Setting>) -> Result<(), String> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let (mut within, mut escaped) = (false, false);
    for &byte in options {
        if !escaped && byte.is_ascii_whitespace() {
            within = false;
            continue;
        }
        if !std::mem::replace(&mut within, true) {
            words.push(Vec::new());
        }
        if !escaped && byte == b'\\' {
            escaped = true;
            continue;
        }
        escaped = false;
        if let Some(word) = words.last_mut() {
            word.push(byte);
        }
    }
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match &word[..] {
            b"-c" => words.next(),
            _ => word.strip_prefix(b"-c").or_else(|| word.strip_prefix(b"--")).map(<[u8]>::to_vec),
        };
        let pair = setting.as_deref().and_then(|setting| {
            let mut parts = setting.splitn(2, |byte| *byte == b'=');
            parts.next().zip(parts.next()).filter(|(name, _)| !name.is_empty())
        });
        let Some((name, value)) = pair else {
            return Err(format!(
                "qudag-sidecar: unsupported command-line argument for the server: {}",
                shown(&word)
            ));
        };
        let name = name.iter().map(|byte| if *byte == b'-' { b'_' } else { *byte });
        given.push((name.collect(), value.to_vec()));
    }
    Ok(())
}

/// A name of unknown encoding for a log line: at most 63 bytes, without control characters.
pub(crate) fn shown(name: &[u8]) -> String {
    let name = name.get(..SHOWN).unwrap_or(name);
    String::from_utf8_lossy(name).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Why bytes are not a start-up packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length is below 8 or above the limit.
    #[error("invalid length of startup packet")]
    Length,
    /// Another major version, or an unknown request code.
    #[error("unsupported frontend protocol {}.{}", .0 >> 16, .0 & 0xffff)]
    Protocol(u32),
    /// An SSLRequest, GSSENCRequest or CancelRequest of a wrong length.
    #[error("invalid length of {0}")]
    RequestLength(&'static str),
    /// The parameters are not pairs of strings that a zero byte ends.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    /// A second SSLRequest or GSSENCRequest.
    #[error("{0} was already answered")]
    Repeated(&'static str),
}

/// How far the bytes lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing can be decided before so many bytes are there in all. No packet is shorter than that, so that reading up to there
    /// takes nothing of what follows the packet.
    Need(usize),
    /// A packet, and the number of bytes that belong to it. Bytes of a TLS handshake all belong to it.
    Packet(StartupPacket, usize),
}

/// Reads the packet at the start of `bytes`, deciding as early as possible.
///
/// # Errors
/// When no continuation of the bytes can be a start-up packet.
pub(crate) fn parse(bytes: &[u8]) -> Result<Progress, StartupError> {
    if bytes.first() == Some(&TLS_HANDSHAKE) {
        return Ok(Progress::Packet(StartupPacket::DirectTls, bytes.len()));
    }
    let Some((length, rest)) = int32(bytes) else { return Ok(Progress::Need(HEADER)) };
    let length = usize::try_from(length).map_err(|_| StartupError::Length)?;
    if !(HEADER..=MAX_STARTUP_PACKET_LENGTH + 4).contains(&length) {
        return Err(StartupError::Length);
    }
    let Some((code, _)) = int32(rest) else { return Ok(Progress::Need(HEADER)) };
    // The process id and a key of at least 4 bytes.
    let cancel_lengths = HEADER + 8..=HEADER + 4 + MAX_CANCEL_KEY_LENGTH;
    match code {
        SSL_REQUEST if length != HEADER => return Err(StartupError::RequestLength("SSLRequest")),
        GSSENC_REQUEST if length != HEADER => return Err(StartupError::RequestLength("GSSENCRequest")),
        CANCEL_REQUEST if !cancel_lengths.contains(&length) => {
            return Err(StartupError::RequestLength("CancelRequest"));
        }
        SSL_REQUEST | GSSENC_REQUEST | CANCEL_REQUEST => {}
        version if version >> 16 == 3 => {}
        version => return Err(StartupError::Protocol(version)),
    }
    let Some(body) = bytes.get(HEADER..length) else { return Ok(Progress::Need(length)) };
    let packet = match code {
        SSL_REQUEST => StartupPacket::SslRequest,
        GSSENC_REQUEST => StartupPacket::GssEncRequest,
        CANCEL_REQUEST => {
            let (process, secret) = int32(body).ok_or(StartupError::RequestLength("CancelRequest"))?;
            StartupPacket::CancelRequest { process, secret: secret.to_vec() }
        }
        version => StartupPacket::Startup(parameters((version & 0xffff) as u16, body)?),
    };
    Ok(Progress::Packet(packet, length))
}

/// The Int32 at the start of the bytes, and what follows it.
fn int32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_be_bytes(*number), rest))
}

/// The parameters of a StartupMessage. The last one of a name counts, as in PostgreSQL.
fn parameters(minor: u16, mut body: &[u8]) -> Result<StartupMessage, StartupError> {
    let mut message = StartupMessage { minor, ..StartupMessage::default() };
    loop {
        let (name, rest) = string(body)?;
        if name.is_empty() {
            if !rest.is_empty() {
                return Err(StartupError::Layout);
            }
            if message.database.is_empty() {
                message.database.clone_from(&message.user);
            }
            return Ok(message);
        }
        let (value, rest) = string(rest)?;
        match name {
            b"user" => message.user = value.to_vec(),
            b"database" => message.database = value.to_vec(),
            _ => {
                if name == b"application_name" {
                    message.application_name = value.to_vec();
                }
                message.parameters.push((name.to_vec(), value.to_vec()));
            }
        }
        body = rest;
    }
}

/// The zero-terminated string at the start of the bytes, and what follows it.
fn string(bytes: &[u8]) -> Result<(&[u8], &[u8]), StartupError> {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    parts.next().zip(parts.next()).ok_or(StartupError::Layout)
}

impl fmt::Display for StartupMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {:?}, database {:?}", shown(&self.user), shown(&self.database))
    }
}

/// The entry for fuzzing: any bytes in any pieces give the same answer and no panic.
///
/// # Panics
/// When an invariant of the parser is broken.
pub fn fuzz_startup(bytes: &[u8]) {
    let whole = parse(bytes);
    let mut needed = 0;
    for end in 0..=bytes.len() {
        let Some(piece) = bytes.get(..end) else { break };
        match parse(piece) {
            Ok(Progress::Need(total)) => {
                assert!(total > end && total >= needed, "asks for what is there");
                assert!(total <= MAX_STARTUP_PACKET_LENGTH + 4, "asks for too much");
                needed = total;
            }
            Ok(Progress::Packet(StartupPacket::DirectTls, used)) => {
                assert!(used == end && matches!(whole, Ok(Progress::Packet(StartupPacket::DirectTls, _))));
                return;
            }
            decided => {
                assert!(decided == whole, "more bytes change the answer");
                if let Ok(Progress::Packet(_, used)) = decided {
                    assert!(used == end, "takes bytes that do not belong to the packet");
                }
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).unwrap();
        [&length.to_be_bytes()[..], &code.to_be_bytes(), body].concat()
    }

    fn startup(minor: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut body = Vec::new();
        for (name, value) in pairs {
            body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        body.push(0);
        packet(3 << 16 | minor, &body)
    }

    fn parsed(bytes: &[u8]) -> StartupPacket {
        match parse(bytes) {
            Ok(Progress::Packet(packet, used)) if used == bytes.len() => packet,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_packet_is_recognised() {
        assert_eq!(parsed(&[0, 0, 0, 8, 4, 210, 22, 47]), StartupPacket::SslRequest);
        assert_eq!(parsed(&[0, 0, 0, 8, 4, 210, 22, 48]), StartupPacket::GssEncRequest);
        let cancel =
            |process, secret: &[u8]| StartupPacket::CancelRequest { process, secret: secret.to_vec() };
        assert_eq!(parsed(&packet(CANCEL_REQUEST, &[0, 0, 1, 2, 9, 8, 7, 6])), cancel(258, &[9, 8, 7, 6]));
        assert_eq!(parsed(&packet(CANCEL_REQUEST, &[1; 260])), cancel(0x0101_0101, &[1; 256]));
        assert_eq!(parsed(&[0x16, 3, 1, 2]), StartupPacket::DirectTls);
        let message = |minor, user: &str, database: &str, name: &str| {
            let parameter = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
            let named = (!name.is_empty())
                .then(|| vec![parameter("options", "-c a=b"), parameter("application_name", name)]);
            StartupPacket::Startup(StartupMessage {
                parameters: named.unwrap_or_default(),
                minor,
                user: user.into(),
                database: database.into(),
                application_name: name.into(),
            })
        };
        let pairs = [("user", "ann"), ("options", "-c a=b"), ("database", "d"), ("application_name", "psql")];
        assert_eq!(parsed(&startup(0, &pairs)), message(0, "ann", "d", "psql"));
        assert_eq!(parsed(&startup(2, &[("user", "ann")])), message(2, "ann", "ann", ""));
        assert_eq!(parsed(&startup(0, &[("user", "a"), ("user", "b")])), message(0, "b", "b", ""));
        assert_eq!(parsed(&startup(0, &[])), message(0, "", "", ""));
    }

    #[test]
    fn options_are_settings_as_the_server_reads_them() {
        let given = |options: &str| {
            let pairs = [("user", "ann"), ("options", options), ("TimeZone", "UTC"), ("_pq_.x", "1")];
            let StartupPacket::Startup(message) = parsed(&startup(2, &pairs)) else { panic!("{options}") };
            assert_eq!(message.protocol_options().collect::<Vec<_>>(), [b"_pq_.x"]);
            message.given().map(|given| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                given
                    .iter()
                    .map(|(name, value)| format!("{}={}", text(name), text(value)))
                    .collect::<Vec<_>>()
            })
        };
        let settings = r"-c a=b\ c  -cd=e=f --work-mem=1MB\\ -c x=";
        assert_eq!(given(settings).unwrap(), ["a=b c", "d=e=f", r"work_mem=1MB\", "x=", "TimeZone=UTC"]);
        assert_eq!(given(" ").unwrap(), ["TimeZone=UTC"]);
        for wrong in ["-d 3", "-c", "-c a", "a=b", "--", "-c =b"] {
            assert!(given(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_follows_a_packet_is_left_alone() {
        let mut bytes = startup(0, &[("user", "ann")]);
        let length = bytes.len();
        bytes.extend_from_slice(b"more");
        assert!(matches!(parse(&bytes), Ok(Progress::Packet(_, used)) if used == length));
    }

    #[test]
    fn nonsense_is_refused_as_soon_as_it_is_seen() {
        assert_eq!(parse(b"GET "), Err(StartupError::Length));
        assert_eq!(parse(&[0, 0, 0, 7]), Err(StartupError::Length));
        assert_eq!(parse(&10_005_u32.to_be_bytes()), Err(StartupError::Length));
        assert_eq!(parse(&10_004_u32.to_be_bytes()), Ok(Progress::Need(8)));
        assert_eq!(parse(&packet(2 << 16, &[0])), Err(StartupError::Protocol(2 << 16)));
        assert_eq!(parse(&packet(4 << 16, &[0])), Err(StartupError::Protocol(4 << 16)));
        assert_eq!(parse(&packet(80_877_105, &[])), Err(StartupError::Protocol(80_877_105)));
        assert_eq!(parse(&packet(SSL_REQUEST, &[0])), Err(StartupError::RequestLength("SSLRequest")));
        for length in [0, 4, 7, 261, 300] {
            let cancel = packet(CANCEL_REQUEST, &vec![0; length]);
            assert_eq!(parse(&cancel), Err(StartupError::RequestLength("CancelRequest")), "{length}");
        }
        for body in ["", "user\0ann\0", "user\0\0", "user", "\0\0", "user\0ann\0\0x\0"] {
            assert_eq!(parse(&packet(3 << 16, body.as_bytes())), Err(StartupError::Layout), "{body:?}");
        }
    }

    #[test]
    fn names_are_shown_without_control_characters_and_cut() {
        assert_eq!(shown(b"a\x1b[31m\nb"), "a\u{fffd}[31m\u{fffd}b");
        assert_eq!(shown(&[b'x'; 100]).len(), 63);
        assert_eq!(shown(&[0xff, b'a']), "\u{fffd}a");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_give_one_answer(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            fuzz_startup(&bytes);
        }

        #[test]
        fn any_body_under_a_valid_header_gives_one_answer(
            code in prop_oneof![
                Just(SSL_REQUEST), Just(GSSENC_REQUEST), Just(CANCEL_REQUEST), (0_u32..5).prop_map(|minor| 3 << 16 | minor), any::<u32>(),
            ],
            body in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..300),
            wrong in -2_i64..3,
            tail in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let mut bytes = packet(code, &body);
            let length = u32::try_from((bytes.len() as i64 + wrong).max(0)).unwrap();
            bytes[..4].copy_from_slice(&length.to_be_bytes());
            bytes.extend(tail);
            fuzz_startup(&bytes);
        }

        #[test]
        fn parameters_are_read_as_they_were_written(
            pairs in proptest::collection::vec(("[a-z_]{1,12}", "[^\\x00]{0,40}"), 0..20),
            user in "[^\\x00]{1,70}",
        ) {
            let mut pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            pairs.push(("user", &user));
            let bytes = startup(0, &pairs);
            fuzz_startup(&bytes);
            let StartupPacket::Startup(message) = parsed(&bytes) else { panic!() };
            prop_assert_eq!(message.user, user.as_bytes());
        }
    }
}
