//! The signals that end a program.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;

/// Listens from the moment it is made.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    quit: Signal,
}

/// A signal that ends a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Ctrl-C.
    Interrupt,
    /// What `kill` and service managers send.
    Terminate,
    /// Ctrl-\, which Dragonfly's daemon also takes as a wish to end in order.
    Quit,
}

impl Ending {
    /// How a client ends after it.
    #[must_use]
    pub fn exit(self) -> Exit {
        match self {
            Ending::Interrupt => Exit::Interrupted,
            Ending::Terminate | Ending::Quit => Exit::Terminated,
        }
    }

    /// 128 and the signal's number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Ending::Interrupt => 130,
            Ending::Quit => 131,
            Ending::Terminate => 143,
        }
    }

    /// The signal's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Ending::Interrupt => "SIGINT",
            Ending::Terminate => "SIGTERM",
            Ending::Quit => "SIGQUIT",
        }
    }
}

impl Signals {
    /// Takes SIGINT, SIGTERM and SIGQUIT over; needs a running runtime.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// Waits for the next one. Cancel-safe.
    pub async fn next(&mut self) -> Ending {
        // `recv` is `None` only when the runtime's signal driver is gone, and this future with it.
        tokio::select! {
            _ = self.interrupt.recv() => Ending::Interrupt,
            _ = self.terminate.recv() => Ending::Terminate,
            _ = self.quit.recv() => Ending::Quit,
        }
    }
}
