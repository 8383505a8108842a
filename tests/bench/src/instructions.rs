//! How many instructions a piece of work takes, counted one by one: times are noisy, instructions are not.
//!
//! The work is done in a process of its own, which is stopped after each instruction (`ptrace(2)`, PTRACE_SINGLESTEP). Unlike
//! simulators of processors this counts every instruction that the processor knows.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::ptrace;
use nix::sys::signal::{Signal, raise};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::Failure;
use crate::pinned::Pinned;

/// How often the work is done before it is counted, so that what happens once is not.
const BEFORE: usize = 3;

/// Does a piece of work so that [`count`] can count its instructions.
///
/// # Errors
/// When the work fails, or the operating system does not let a process be traced.
pub fn counted(mut work: impl FnMut() -> Result<(), Failure>) -> Result<(), Failure> {
    for _ in 0..BEFORE {
        work()?;
    }
    ptrace::traceme()?;
    // Between the first two marks is what a mark itself takes.
    raise(Signal::SIGSTOP)?;
    raise(Signal::SIGSTOP)?;
    work()?;
    raise(Signal::SIGSTOP)?;
    Ok(())
}

/// Runs a program, this one or one that has it in it, with arguments that make it call [`counted`], and counts the instructions of its work.
///
/// # Errors
/// When the program fails, or cannot be traced.
pub fn count(program: &Path, arguments: &[&str]) -> Result<u64, Failure> {
    // The two take turns several times as fast there.
    let _pinned = Pinned::here()?;
    let child = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let traced = Traced(Pid::from_raw(i32::try_from(child.id())?));
    let first = waitpid(traced.0, None)?;
    if !matches!(first, WaitStatus::Stopped(_, Signal::SIGSTOP)) {
        return Err(format!("a program that was to be traced: {first:?}").into());
    }
    let mark = traced.until_mark()?;
    let work = traced.until_mark()?;
    Ok(work.saturating_sub(mark))
}

/// A traced program that has come to a mark. It ends with this.
struct Traced(Pid);

impl Drop for Traced {
    fn drop(&mut self) {
        // Where it has ended by itself there is nothing to do.
        let _ = ptrace::kill(self.0);
        let _ = waitpid(self.0, None);
    }
}

impl Traced {
    /// Goes on to the next mark and counts the instructions on the way.
    fn until_mark(&self) -> Result<u64, Failure> {
        let (mut count, mut place) = (0, 0);
        loop {
            ptrace::step(self.0, None)?;
            match waitpid(self.0, None)? {
                WaitStatus::Stopped(_, Signal::SIGSTOP) => return Ok(count),
                WaitStatus::Stopped(_, Signal::SIGTRAP) => {
                    // An instruction that repeats itself (`rep movs`) stops after each time.
                    let now = self.place()?;
                    count += u64::from(now != place);
                    place = now;
                }
                status => return Err(format!("a traced program: {status:?}").into()),
            }
        }
    }

    /// Where the program is.
    fn place(&self) -> Result<u64, Failure> {
        let registers = ptrace::getregs(self.0)?;
        #[cfg(target_arch = "x86_64")]
        let place = registers.rip;
        #[cfg(target_arch = "aarch64")]
        let place = registers.pc;
        Ok(place)
    }
}
