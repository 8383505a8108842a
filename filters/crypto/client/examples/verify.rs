//! Verifies one signature of the initial public draft, which QuDAG nodes make, and prints who has verified it.
//!
//! ```text
//! cargo run -p qudag-offload-client --example verify -- SOCKET KEY MESSAGE SIGNATURE
//! ```
//!
//! `KEY` and the others are files. The exit code is 0 for a valid signature, 1 for another one and 2 when that is not known.

use std::process::ExitCode;

use qudag_offload_client::{Client, Content, Edition, Key, Signature, Verdict};

fn main() -> ExitCode {
    match run() {
        Ok(Verdict::Valid) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(why) => {
            eprintln!("verify: {why}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<Verdict, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let mut argument = |name: &str| arguments.next().ok_or_else(|| format!("{name} is missing"));
    let socket = argument("SOCKET")?;
    let key = std::fs::read(argument("KEY")?)?;
    let message = std::fs::read(argument("MESSAGE")?)?;
    let signature = std::fs::read(argument("SIGNATURE")?)?;

    let mut client = Client::connect(socket)?;
    let answer = client.verify(&[Signature {
        key: Key::Public(&key[..]),
        edition: Edition::Draft,
        content: Content::Message { context: &[][..], message: &message[..] },
        signature: &signature[..],
    }])?;
    let verdict = answer.value.first().copied().ok_or("no verdict")?;
    println!("{}, said by {}", verdict.name(), answer.by);
    Ok(verdict)
}
