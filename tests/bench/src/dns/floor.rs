//! The least that a server over UDP can do: receive many, answer each without looking anything up, send many.

use std::net::{SocketAddr, UdpSocket};

use nix::sys::socket::SockaddrIn;

use super::batch::Batch;
use super::question::instant_reply;
use crate::Failure;

/// Answers until it is killed.
///
/// # Errors
/// When the address cannot be bound or the socket breaks.
pub fn serve(at: SocketAddr) -> Result<(), Failure> {
    let socket = UdpSocket::bind(at)?;
    let mut batch = Batch::default();
    let mut replies: Vec<Vec<u8>> = Vec::new();
    let mut clients: Vec<Option<SockaddrIn>> = Vec::new();
    loop {
        replies.clear();
        clients.clear();
        batch.receive(&socket, true, |query, client| {
            let mut room = [0; 64];
            if let Some(reply) = instant_reply(query, &mut room).and_then(|length| room.get(..length)) {
                replies.push(reply.to_vec());
                clients.push(client);
            }
        })?;
        batch.send(&socket, &replies, &clients)?;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dns::load::{self, Load, Order, Pace};
    use crate::dns::question::Questions;

    #[test]
    fn it_answers_every_question_of_the_benchmark() {
        let at = qudag_kit::ports::free();
        std::thread::spawn(move || serve(at));
        let questions = Questions::new(0..300);
        let pace = Pace::Open { rate: 3_000.0, queries: 300 };
        let patience = Duration::from_secs(1);
        let load = Load { to: at, questions: &questions, order: Order::Spread, pace, patience };
        // The thread may bind its socket later than the first queries leave.
        let right = (0..10).map(|_| load::run(load).unwrap().right).find(|right| *right == 300);
        assert_eq!(right, Some(300));
    }
}
