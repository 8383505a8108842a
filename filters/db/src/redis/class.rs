//! What a command means for the connection that it is sent on.

use super::resp::{RespError, arguments};

/// What an answer says of the connection's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing.
    Plain,
    /// Whether the session follows what its client asked for.
    Followed,
    /// The answer to MULTI.
    Multi,
    /// To EXEC.
    Exec,
    /// To DISCARD.
    Discard,
    /// To WATCH.
    Watch,
    /// To UNWATCH.
    Unwatch,
}

/// A command by what it does to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// No command: an empty line or array, to which there is no answer.
    Empty,
    /// Any connection will do, or the one that carries the transaction.
    Shared(Expect),
    Auth,
    Hello,
    Select,
    Quit,
    Reset,
    /// CLIENT SETNAME, GETNAME and SETINFO.
    SetName,
    GetName,
    SetInfo,
    /// WAIT and WAITAOF.
    Wait,
    WaitAof,
    /// The session needs a connection of its own; why, as a label.
    Own(&'static str),
    /// XREAD and XREADGROUP, which may block.
    Read,
}

/// The class of a command by its name and first argument, both in capital letters.
pub(crate) fn class(name: &[u8], first: &[u8]) -> Class {
    match name {
        b"MULTI" => Class::Shared(Expect::Multi),
        b"EXEC" => Class::Shared(Expect::Exec),
        b"DISCARD" => Class::Shared(Expect::Discard),
        b"WATCH" => Class::Shared(Expect::Watch),
        b"UNWATCH" => Class::Shared(Expect::Unwatch),
        b"AUTH" => Class::Auth,
        b"HELLO" => Class::Hello,
        b"SELECT" => Class::Select,
        b"QUIT" => Class::Quit,
        b"RESET" => Class::Reset,
        b"WAIT" => Class::Wait,
        b"WAITAOF" => Class::WaitAof,
        b"SUBSCRIBE" | b"PSUBSCRIBE" | b"SSUBSCRIBE" | b"UNSUBSCRIBE" | b"PUNSUBSCRIBE" | b"SUNSUBSCRIBE" => {
            Class::Own("pubsub")
        }
        b"BLPOP" | b"BRPOP" | b"BRPOPLPUSH" | b"BLMOVE" | b"BLMPOP" | b"BZPOPMIN" | b"BZPOPMAX"
        | b"BZMPOP" => Class::Own("blocking"),
        b"XREAD" | b"XREADGROUP" => Class::Read,
        b"MONITOR" => Class::Own("monitor"),
        b"SYNC" | b"PSYNC" | b"REPLCONF" => Class::Own("replication"),
        b"ASKING" | b"READONLY" | b"READWRITE" => Class::Own("cluster"),
        b"SCRIPT" if first == b"DEBUG" => Class::Own("script"),
        b"CLIENT" => match first {
            b"SETNAME" => Class::SetName,
            b"GETNAME" => Class::GetName,
            b"SETINFO" => Class::SetInfo,
            // These speak of all connections of the server.
            b"LIST" | b"KILL" | b"PAUSE" | b"UNPAUSE" | b"UNBLOCK" | b"HELP" | b"" => {
                Class::Shared(Expect::Plain)
            }
            _ => Class::Own("client"),
        },
        _ => Class::Shared(Expect::Plain),
    }
}

/// The class of a complete command. `name` and `first` are what the scanner knows, which is nothing of an inline command.
///
/// # Errors
/// When the quotes of an inline command are wrong.
pub(crate) fn classify(command: &[u8], name: &[u8], first: &[u8]) -> Result<Class, RespError> {
    let class = match (command.first(), name) {
        (Some(b'*'), b"") if command.get(1).is_some_and(|byte| matches!(byte, b'0' | b'-')) => Class::Empty,
        (Some(b'*'), _) => class(name, first),
        _ => {
            let mut words = arguments(command)?.into_iter().map(|word| word.to_ascii_uppercase());
            match words.next() {
                None => Class::Empty,
                Some(name) => class(&name, &words.next().unwrap_or_default()),
            }
        }
    };
    if class != Class::Read {
        return Ok(class);
    }
    // XREAD [COUNT n] [BLOCK ms] STREAMS …; what follows STREAMS are keys and ids.
    let words = arguments(command)?;
    let mut options = words.iter().take_while(|word| !word.eq_ignore_ascii_case(b"STREAMS"));
    let blocks = options.any(|word| word.eq_ignore_ascii_case(b"BLOCK"));
    Ok(if blocks { Class::Own("blocking") } else { Class::Shared(Expect::Plain) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Class {
        let words: Vec<_> = line.split_whitespace().collect();
        let mut command = format!("*{}\r\n", words.len());
        for word in &words {
            command += &format!("${}\r\n{word}\r\n", word.len());
        }
        let word = |index: usize| words.get(index).map(|word| word.to_uppercase()).unwrap_or_default();
        let class = classify(command.as_bytes(), word(0).as_bytes(), word(1).as_bytes()).unwrap();
        let inline = format!("{line}\r\n");
        assert_eq!(classify(inline.as_bytes(), b"", b"").unwrap(), class, "{line}");
        class
    }

    #[test]
    fn commands_are_told_apart_by_what_they_do_to_their_connection() {
        assert_eq!(of("get a"), Class::Shared(Expect::Plain));
        assert_eq!(of("Multi"), Class::Shared(Expect::Multi));
        assert_eq!(of("xread count 1 streams block 0"), Class::Shared(Expect::Plain));
        assert_eq!(of("xread block 0 streams a 0"), Class::Own("blocking"));
        assert_eq!(of("xreadgroup group g c BLOCK 5 streams a >"), Class::Own("blocking"));
        assert_eq!(of("subscribe a"), Class::Own("pubsub"));
        assert_eq!(of("client setname a"), Class::SetName);
        assert_eq!(of("client list"), Class::Shared(Expect::Plain));
        assert_eq!(of("client reply off"), Class::Own("client"));
        assert_eq!(of("script load x"), Class::Shared(Expect::Plain));
        assert_eq!(of("script debug yes"), Class::Own("script"));
        for empty in [&b"\r\n"[..], b"*0\r\n", b"*-1\r\n"] {
            assert_eq!(classify(empty, b"", b"").unwrap(), Class::Empty);
        }
        assert!(classify(b"get \"\r\n", b"", b"").is_err());
        // An empty name is a name, and servers answer it.
        assert_eq!(classify(b"*1\r\n$0\r\n\r\n", b"", b"").unwrap(), Class::Shared(Expect::Plain));
    }
}
