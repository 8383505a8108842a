//! What a socket costs in itself: a program that reads requests as long as those of the crypto service, and answers without looking at them.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// Bytes of a frame before its body, and of an operation: one signature with the id of its key and a message of 32 bytes.
const HEADER: usize = 12;
const OPERATION: usize = 12 + 32 + 32 + 3309;

/// Answers the first client at `path` until it goes: to a request of so many operations with a header and a byte for each of them.
///
/// # Errors
/// When there can be no socket.
pub fn serve(path: &Path) -> io::Result<()> {
    let (mut connection, _) = UnixListener::bind(path)?.accept()?;
    let mut request = vec![0; HEADER + 64 * OPERATION];
    while answer(&mut connection, &mut request).is_ok() {}
    Ok(())
}

fn answer(connection: &mut UnixStream, request: &mut [u8]) -> io::Result<()> {
    let mut received = connection.read(request)?;
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let operations = usize::from(request[0]);
    while received < HEADER + operations * OPERATION {
        received += connection.read(&mut request[received..])?;
    }
    connection.write_all(&request[..HEADER + operations])
}

/// The program, and a connection to it.
pub struct Floor {
    program: Child,
    connection: UnixStream,
    request: Vec<u8>,
}

impl Floor {
    /// Starts the program, for requests of so many operations.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(operations: usize) -> Self {
        let place = std::env::temp_dir().join(format!("qudag-floor-{}-{operations}", std::process::id()));
        // Of an earlier measurement, if it is there.
        let _ = std::fs::remove_file(&place);
        let program = Command::new(std::env::current_exe().expect("this program"))
            .arg("--floor")
            .arg(&place)
            .stdin(Stdio::null())
            .spawn()
            .expect("this program once more");
        let connection = (0..500).find_map(|_| {
            thread::park_timeout(Duration::from_millis(10));
            UnixStream::connect(&place).ok()
        });
        let _ = std::fs::remove_file(&place);
        let mut request = vec![0; HEADER + operations * OPERATION];
        request[0] = u8::try_from(operations).expect("a small batch");
        Self { program, connection: connection.expect("it listens"), request }
    }

    pub fn process(&self) -> u32 {
        self.program.id()
    }

    /// A request and its answer.
    ///
    /// # Panics
    /// When the program has gone.
    pub fn call(&mut self) {
        self.connection.write_all(&self.request).expect("it reads");
        let mut reply = [0; HEADER + 64];
        let reply = &mut reply[..HEADER + usize::from(self.request[0])];
        self.connection.read_exact(reply).expect("it answers");
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // It has nothing to lose, and may have gone.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
