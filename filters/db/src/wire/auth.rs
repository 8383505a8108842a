//! The messages of the authentication, between the StartupMessage and AuthenticationOk, and what a server says until its first
//! ReadyForQuery.

use bytes::{BufMut, BytesMut};

use super::build::{message, string};
use super::cursor::Cursor;
use super::{Head, WireError, backend};

/// The type of all that a server asks for, and of AuthenticationOk.
pub const REQUEST: u8 = b'R';
/// The type of all that a client answers: PasswordMessage, SASLInitialResponse, SASLResponse.
pub const RESPONSE: u8 = b'p';
/// Protocol 3.0.
const PROTOCOL: u32 = 3 << 16;

/// The longest response of a client: that of a StartupMessage. Passwords are short, and the tokens that stand in their place have some thousand
/// bytes.
const LONGEST_RESPONSE: usize = 10_000;
/// The limits of libpq (`PQconnectPoll`).
const LONGEST_REQUEST: usize = 2000;
const LONGEST_REPORT: usize = 30_000;

/// The header of a client's message at the start of the bytes; `None` when more bytes are needed.
///
/// # Errors
/// When no continuation of the bytes can be a response.
pub fn client_head(bytes: &[u8]) -> Result<Option<Head>, WireError> {
    super::head(bytes, |kind| (kind == RESPONSE).then_some(LONGEST_RESPONSE))
}

/// The header of a server's message at the start of the bytes; `None` when more bytes are needed.
///
/// # Errors
/// When no continuation of the bytes can be a message of a login.
pub fn server_head(bytes: &[u8]) -> Result<Option<Head>, WireError> {
    super::head(bytes, |kind| match kind {
        REQUEST | backend::NEGOTIATE => Some(LONGEST_REQUEST),
        backend::ERROR | backend::NOTICE | backend::PARAMETER | backend::KEY_DATA | backend::READY => {
            Some(LONGEST_REPORT)
        }
        _ => None,
    })
}

/// What a server asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// AuthenticationOk: nothing more.
    Ok,
    /// AuthenticationCleartextPassword.
    Cleartext,
    /// AuthenticationMD5Password, with a salt.
    Md5([u8; 4]),
    /// AuthenticationSASL: one of these mechanisms.
    Sasl(Vec<&'a [u8]>),
    /// AuthenticationSASLContinue.
    SaslContinue(&'a [u8]),
    /// AuthenticationSASLFinal.
    SaslFinal(&'a [u8]),
    /// Something else, by its code.
    Other(u32),
}

impl<'a> Request<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(body);
        let mut read = || {
            Some(match cursor.u32()? {
                0 => cursor.is_empty().then_some(Self::Ok)?,
                3 => cursor.is_empty().then_some(Self::Cleartext)?,
                5 => {
                    let salt = cursor.array()?;
                    cursor.is_empty().then_some(Self::Md5(salt))?
                }
                10 => {
                    let mut mechanisms = Vec::new();
                    loop {
                        match cursor.string()? {
                            b"" => break,
                            mechanism => mechanisms.push(mechanism),
                        }
                    }
                    cursor.is_empty().then_some(Self::Sasl(mechanisms))?
                }
                11 => Self::SaslContinue(cursor.0),
                12 => Self::SaslFinal(cursor.0),
                other => Self::Other(other),
            })
        };
        read().ok_or(WireError::Body(REQUEST))
    }

    /// Writes it.
    pub fn write(&self, out: &mut BytesMut) {
        message(out, REQUEST, |out| match self {
            Self::Ok => out.put_u32(0),
            Self::Cleartext => out.put_u32(3),
            Self::Md5(salt) => {
                out.put_u32(5);
                out.put_slice(salt);
            }
            Self::Sasl(mechanisms) => {
                out.put_u32(10);
                mechanisms.iter().for_each(|mechanism| string(out, mechanism));
                out.put_u8(0);
            }
            Self::SaslContinue(data) => {
                out.put_u32(11);
                out.put_slice(data);
            }
            Self::SaslFinal(data) => {
                out.put_u32(12);
                out.put_slice(data);
            }
            Self::Other(code) => out.put_u32(*code),
        });
    }
}

/// SASLInitialResponse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaslInitial<'a> {
    /// The mechanism that the client has chosen.
    pub mechanism: &'a [u8],
    /// Its first message, where there is one.
    pub response: Option<&'a [u8]>,
}

impl<'a> SaslInitial<'a> {
    /// Reads a body.
    ///
    /// # Errors
    /// When it is none.
    pub fn read(body: &'a [u8]) -> Result<Self, WireError> {
        let mut cursor = Cursor(body);
        let mut read = || {
            let mechanism = cursor.string()?;
            let response = match cursor.u32()? {
                u32::MAX => None,
                length => Some(cursor.take(usize::try_from(length).ok()?)?),
            };
            cursor.is_empty().then_some(Self { mechanism, response })
        };
        read().ok_or(WireError::Body(RESPONSE))
    }

    /// Writes it.
    pub fn write(&self, out: &mut BytesMut) {
        message(out, RESPONSE, |out| {
            string(out, self.mechanism);
            match self.response {
                Some(response) => {
                    out.put_u32(u32::try_from(response.len()).unwrap_or(u32::MAX));
                    out.put_slice(response);
                }
                None => out.put_u32(u32::MAX),
            }
        });
    }
}

/// The password of a PasswordMessage, or the hash in its place.
///
/// # Errors
/// When the body is not one string.
pub fn password(body: &[u8]) -> Result<&[u8], WireError> {
    let mut cursor = Cursor(body);
    cursor.string().filter(|_| cursor.is_empty()).ok_or(WireError::Body(RESPONSE))
}

/// Writes a PasswordMessage.
pub fn put_password(out: &mut BytesMut, password: &[u8]) {
    message(out, RESPONSE, |out| string(out, password));
}

/// Writes a SASLResponse.
pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    message(out, RESPONSE, |out| out.put_slice(data));
}

/// Writes a StartupMessage of protocol 3.0. A pair without a name would end it, and is left out.
pub fn startup<'a>(out: &mut BytesMut, pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>) {
    let mut body = BytesMut::with_capacity(256);
    body.put_u32(PROTOCOL);
    for (name, value) in pairs {
        if name.iter().any(|byte| *byte != 0) {
            string(&mut body, name);
            string(&mut body, value);
        }
    }
    body.put_u8(0);
    out.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
    out.put_slice(&body);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::body;

    fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        write(&mut out);
        out
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 0..60)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            salt: [u8; 4], data in request(), names in proptest::collection::vec("[A-Z0-9-]{1,20}", 0..4), code in 13_u32..,
            initial: bool, word in "[^\\x00]{0,40}",
        ) {
            let names: Vec<_> = names.iter().map(String::as_bytes).collect();
            for request in [
                Request::Ok, Request::Cleartext, Request::Md5(salt), Request::Sasl(names.clone()),
                Request::SaslContinue(&data), Request::SaslFinal(&data), Request::Other(code),
            ] {
                let bytes = written(|out| request.write(out));
                let head = server_head(&bytes).unwrap().unwrap();
                prop_assert_eq!(head.len, bytes.len());
                prop_assert_eq!(Request::read(body(&bytes, head).unwrap()), Ok(request));
            }
            let sasl = SaslInitial { mechanism: b"SCRAM-SHA-256", response: initial.then_some(&data[..]) };
            let bytes = written(|out| sasl.write(out));
            let head = client_head(&bytes).unwrap().unwrap();
            prop_assert_eq!(SaslInitial::read(body(&bytes, head).unwrap()), Ok(sasl));
            let bytes = written(|out| put_password(out, word.as_bytes()));
            let head = client_head(&bytes).unwrap().unwrap();
            prop_assert_eq!(password(body(&bytes, head).unwrap()), Ok(word.as_bytes()));
            let bytes = written(|out| sasl_response(out, &data));
            let head = client_head(&bytes).unwrap().unwrap();
            prop_assert_eq!(body(&bytes, head).unwrap(), &data[..]);
        }

        #[test]
        fn a_startup_message_is_what_the_listener_reads(
            user in "[^\\x00]{1,20}", database in "[^\\x00]{1,20}", name in "[^\\x00]{0,20}",
        ) {
            let bytes = written(|out| {
                let pairs = [("", "x"), ("user", &user), ("database", &database), ("application_name", &name)];
                startup(out, pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
            });
            let progress = crate::startup::parse(&bytes);
            let Ok(crate::startup::Progress::Packet(crate::StartupPacket::Startup(message), used)) = progress else {
                panic!("{progress:?}")
            };
            prop_assert_eq!(used, bytes.len());
            prop_assert_eq!(
                (&message.user[..], &message.database[..], &message.application_name[..]),
                (user.as_bytes(), database.as_bytes(), name.as_bytes())
            );
        }
    }

    #[test]
    fn nothing_else_and_nothing_long_is_read() {
        assert!(client_head(b"Q\0\0\0\x04").is_err());
        assert!(client_head(b"p\0\0\x27\x11").is_err() && client_head(b"p\0\0\x27\x10").is_ok());
        assert!(server_head(b"D\0\0\0\x04").is_err() && server_head(b"R\0\0\x07\xd1").is_err());
        for wrong in
            [&b"\0\0\0"[..], b"\0\0\0\0x", b"\0\0\0\x05abc", b"\0\0\0\x0aSCRAM-SHA-256\0", b"\0\0\0\x0a\0x"]
        {
            assert!(Request::read(wrong).is_err(), "{wrong:?}");
        }
        assert!(
            SaslInitial::read(b"X\0\0\0\0\x02a").is_err() && SaslInitial::read(b"X\0\0\0\0\x01ab").is_err()
        );
        assert!(password(b"a").is_err() && password(b"a\0b\0").is_err());
    }
}
