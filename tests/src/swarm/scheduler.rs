//! Schedulers of their own, which can be killed without their daemons.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use damselfly_scheduler::machine;
use damselfly_scheduler::machine::Snapshot;
use damselfly_scheduler::service::{Config, GrpcOutbound, SchedulerService};
use tokio::runtime::{Builder, Runtime};

/// A scheduler on a runtime of its own: killing it drops every task and every socket at once, as the kernel does with a
/// killed process.
#[derive(Debug)]
pub struct TestScheduler {
    addr: SocketAddr,
    ring: Vec<String>,
    running: Option<(Runtime, Arc<SchedulerService>)>,
}

impl TestScheduler {
    /// Starts one.
    ///
    /// # Errors
    /// When its port cannot be bound.
    pub fn start() -> io::Result<Self> {
        Ok(Self::ring(1)?.remove(0))
    }

    /// Starts `count` that know of each other.
    ///
    /// # Errors
    /// When a port cannot be bound.
    pub fn ring(count: usize) -> io::Result<Vec<Self>> {
        let listeners: Vec<TcpListener> =
            (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
        let addrs: Vec<SocketAddr> =
            listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        let ring: Vec<String> = addrs.iter().map(ToString::to_string).collect();
        let all = addrs.into_iter().map(|addr| Self { addr, ring: ring.clone(), running: None });
        let mut all: Vec<Self> = all.collect();
        for (scheduler, listener) in all.iter_mut().zip(listeners) {
            scheduler.serve(listener, true)?;
        }
        Ok(all)
    }

    fn serve(&mut self, listener: TcpListener, fresh: bool) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = Config {
            machine: machine::Config { fresh, ..machine::Config::default() },
            address: self.addr.to_string(),
            ring: self.ring.clone(),
            ..Config::default()
        };
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let service = SchedulerService::start(config, Arc::new(GrpcOutbound::default()));
        runtime.spawn(Arc::clone(&service).serve(listener, std::future::pending()));
        self.running = Some((runtime, service));
        Ok(())
    }

    /// Where it listens, or did.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it knows.
    ///
    /// # Panics
    /// When it is down.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.running.as_ref().expect("the scheduler runs").1.snapshot()
    }

    /// Ends it without a farewell.
    pub async fn kill(&mut self) {
        if let Some((runtime, service)) = self.running.take() {
            drop(service);
            super::host::end(runtime).await;
        }
    }

    /// Starts it again at its address, with nothing in its memory.
    ///
    /// # Errors
    /// When its port cannot be bound.
    pub async fn restart(&mut self) -> io::Result<()> {
        self.kill().await;
        self.serve(TcpListener::bind(self.addr)?, false)
    }
}

impl Drop for TestScheduler {
    fn drop(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}
