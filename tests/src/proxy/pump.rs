//! Moving bytes from one socket to another, with faults.

use std::io;
use std::ops::ControlFlow;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{self, Instant};

use super::{Direction, Plan, Shared, Strike};
use crate::pace;

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both sides said all they had to say, or the proxy is gone.
    Over,
    /// A strike, or one side broke off: both get a reset.
    Reset,
}

/// Bytes read at a time.
const STEP: usize = 64 << 10;
/// Reads that are on their way in one direction at most, 16 MiB: what a long line holds.
const ON_ITS_WAY: usize = 256;

/// Moves bytes both ways until both directions ended or one broke.
pub(super) async fn both(
    client: &mut TcpStream,
    target: &mut TcpStream,
    number: u64,
    shared: &Shared,
) -> Ended {
    let (from_client, to_client) = client.split();
    let (from_target, to_target) = target.split();
    let there = one(from_client, to_target, Direction::ToTarget, number, shared);
    let back = one(from_target, to_client, Direction::ToClient, number, shared);
    // The first direction that breaks ends the other one.
    match tokio::try_join!(there, back) {
        Ok(_) => Ended::Over,
        Err(_) => Ended::Reset,
    }
}

/// One direction, to its end.
async fn one(
    mut from: ReadHalf<'_>,
    to: WriteHalf<'_>,
    direction: Direction,
    number: u64,
    shared: &Shared,
) -> io::Result<()> {
    let (line, mut arriving) = mpsc::channel(ON_ITS_WAY);
    let fill = async move {
        loop {
            let mut bytes = vec![0; STEP];
            let count = from.read(&mut bytes).await?;
            bytes.truncate(count);
            if count == 0 || line.send((Instant::now(), bytes)).await.is_err() {
                return Ok(());
            }
        }
    };
    let plan = shared.plan.subscribe();
    let mut writer = Writer { to, direction, number, shared, plan, sent: 0, deaf: false };
    let empty = async move {
        while let Some((at, bytes)) = arriving.recv().await {
            writer.pass(at, bytes).await?;
        }
        // A direction that was cut off ended already, and one that was silenced does not tell.
        if writer.deaf { Ok(()) } else { writer.to.shutdown().await }
    };
    tokio::try_join!(fill, empty).map(drop)
}

struct Writer<'a> {
    to: WriteHalf<'a>,
    direction: Direction,
    number: u64,
    shared: &'a Shared,
    plan: watch::Receiver<Plan>,
    /// Bytes of this direction that passed.
    sent: u64,
    /// Whether what comes vanishes.
    deaf: bool,
}

impl Writer<'_> {
    /// Passes on what came at `at`, when its time has come. An error breaks the connection.
    async fn pass(&mut self, at: Instant, mut bytes: Vec<u8>) -> io::Result<()> {
        let mut rest = &mut bytes[..];
        while !rest.is_empty() && !self.deaf {
            self.ready(at).await;
            let (rate, strike) = {
                let plan = self.plan.borrow();
                let faults = plan.faults(self.direction);
                let spared = faults.spare_from.is_some_and(|first| self.number >= first);
                (faults.rate, faults.strike.filter(|_| !spared))
            };
            let (step, next) = rest.split_at_mut(pace::step(rate, rest.len()));
            if let Some(rate) = rate {
                self.shared.paces[self.direction as usize].pass(step.len(), rate).await;
            }
            if let Some(strike) = strike
                && self.strike(strike, step).await?.is_break()
            {
                return Ok(());
            }
            self.write(step).await?;
            rest = next;
        }
        Ok(())
    }

    /// Waits for the end of the delay and of a pause, both of which may change meanwhile.
    async fn ready(&mut self, at: Instant) {
        loop {
            let due = {
                let plan = self.plan.borrow_and_update();
                (!plan.paused).then(|| at + plan.faults(self.direction).delay)
            };
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::select! {
                    () = time::sleep_until(due) => return,
                    // Fails only without a sender, and this proxy holds it.
                    _ = self.plan.changed() => {}
                },
                None => drop(self.plan.changed().await),
            }
        }
    }

    /// Breaks where nothing of this direction passes any more.
    async fn strike(&mut self, strike: Strike, bytes: &mut [u8]) -> io::Result<ControlFlow<()>> {
        let at = match strike {
            Strike::Truncate(at) | Strike::Reset(at) | Strike::Swallow(at) | Strike::Flip(at) => at,
        };
        if let Strike::Flip(at) = strike {
            let index = at.checked_sub(self.sent).and_then(|index| usize::try_from(index).ok());
            if let Some(byte) = index.and_then(|index| bytes.get_mut(index)) {
                *byte ^= 1;
                self.count_strike();
            }
            return Ok(ControlFlow::Continue(()));
        }
        let unharmed = at.saturating_sub(self.sent);
        if unharmed > bytes.len() as u64 {
            return Ok(ControlFlow::Continue(()));
        }
        // Fits: it is at most the length of a slice.
        self.write(&bytes[..unharmed as usize]).await?;
        self.deaf = true;
        self.count_strike();
        match strike {
            Strike::Truncate(_) => self.to.shutdown().await?,
            Strike::Reset(_) => return Err(io::ErrorKind::ConnectionReset.into()),
            Strike::Swallow(_) | Strike::Flip(_) => {}
        }
        Ok(ControlFlow::Break(()))
    }

    async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = self.to.write(bytes).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.sent += written as u64;
            self.shared.counts.send_modify(|counts| match self.direction {
                Direction::ToTarget => counts.to_target += written as u64,
                Direction::ToClient => counts.to_client += written as u64,
            });
            bytes = &bytes[written..];
        }
        Ok(())
    }

    fn count_strike(&self) {
        self.shared.counts.send_modify(|counts| counts.strikes += 1);
    }
}
