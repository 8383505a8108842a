//! Pooled sessions, sans-io: a client that has a server only while it needs one.
//!
//! [`Client`] and [`Server`] are two machines that a task with two sockets drives. Bytes come in `BytesMut` inboxes and go to `BytesMut`
//! outboxes; a run of untouched bytes is copied once, and when nothing else happens inbox and outbox change places. The machines
//! open no socket, read no clock and allocate nothing for a query whose statements are known. `LIFECYCLE.md` tells every state.
//!
//! ```text
//! loop {                                                  // the client has no server
//!     match client.feed(&mut from_client, &mut to_client)? {       // Err(violation): violation.write(&mut to_client), flush, close
//!         Step::Terminate => return,
//!         Step::More => { flush(to_client); if read(from_client) == 0 { return } continue }
//!         Step::Batch => {}                               // may be asked again, and stays Batch
//!     }
//!     // Ask for admission and a server. Meanwhile read the client's socket without feeding, to notice its end and cancels.
//!     let mut server = match place {
//!         Refused(error) => { client.refuse(&from_client, &mut to_client, &error); continue }
//!         Given(server) => server,
//!     };
//!     let mut ready = server.attach(&mut client, &mut to_server);
//!     loop {                                              // the client has a server
//!         let mut held = !ready;
//!         if ready {
//!             match client.up(&mut server, &mut texts, &mut from_client, &mut to_server, &mut to_client)? {
//!                 Sent::More => {}
//!                 Sent::Held => held = true,              // do not read the client: replies first
//!                 Sent::Terminate => break,
//!             }
//!         }
//!         flush(to_server, to_client);                    // both at once, and bounded: what a side does not take holds the other
//!         select! { read(from_server) == 0 => { client.lost(&server, &mut to_client); flush; return }
//!                   read(from_client) == 0, if !held => break }
//!         match server.down(&mut from_server, &mut to_client, Some(&mut client.seen)) {
//!             Ok(Down::More) => {}
//!             Ok(Down::Ready) => ready = true,
//!             Ok(Down::Free) => break,
//!             Ok(Down::SetupFailed) => { client.refuse_with(&from_client, &mut to_client, server.failure()); break }
//!             Ok(Down::Tidy) => unreachable while a client has it,
//!             Err(unknown) => { client.lost(&server, &mut to_client); flush; break and end the client }
//!         }
//!     }
//!     // The client's part ends here: the rest may be a task of the pool. `Clean` at once, without a byte, is the usual answer.
//!     let mut tidy = server.leave(&mut client, &mut to_server);
//!     loop {
//!         flush(to_server);
//!         match tidy {
//!             Tidy::Clean => give to the next,
//!             Tidy::Close(unknown) => close,
//!             Tidy::Cancelling => wait for the cancel's connection to end, server.cancel_done(),
//!             // Bounded in time and bytes by the pool; at the bound send a CancelRequest with the server's own key, then close.
//!             Tidy::Wait => read until server.down(&mut from_server, &mut nowhere, None)? == Down::Tidy,
//!         }
//!         tidy = server.tidy(&mut to_server);
//!     }
//! }
//! ```
//!
//! A client with [`Client::pins`] stays in the inner loop between its transactions; [`Server::is_between_transactions`] is then the
//! moment for admission. A CancelRequest is looked up in [`CancelKeys`]; it leads to the server only while that [`Server::is_busy`]
//! for the client, between [`Server::cancel_begun`] and [`Server::cancel_done`].

mod cancel;
mod client;
mod fingerprint;
mod lexer;
mod model;
mod parameters;
mod pins;
mod question;
mod reads;
mod relay;
mod replies;
mod requests;
mod seen;
mod server;
mod statements;
mod tables;
mod text;

#[cfg(test)]
mod tests;

pub use cancel::CancelKeys;
pub use client::{BATCH, Client, Step, Violation, Work};
pub use fingerprint::{Fingerprint, shape};
pub(crate) use model::Choices;
pub use model::fuzz_session;
pub use parameters::Parameters;
pub use pins::Pins;
pub use question::{Question, Unfit, fuzz_question, lasting};
pub use reads::Asks;
pub use replies::Down;
pub use requests::Sent;
pub use seen::Seen;
pub use server::{Server, Tidy, Unknown};
pub use statements::Texts;
pub use tables::Writes;
pub use text::fuzz_text;
