//! A future as an actor.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio_util::sync::CancellationToken;

use super::{Board, Faults, Seat};

type Run = Arc<dyn Fn(CancellationToken, Arc<Seat>) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// An actor that is one long-running future: a listener, an announcer.
#[derive(Debug)]
pub struct Service;

/// What a service needs to start.
#[derive(Clone)]
pub struct ServiceArgs {
    /// Its kind, for faults and errors.
    pub name: &'static str,
    /// Its place in the tree.
    pub path: String,
    /// Where it shows itself.
    pub board: Board,
    /// For tests: the service panics when its kind is armed and it is started or woken.
    pub faults: Faults,
    /// Cancelled when the service is to return.
    pub stop: CancellationToken,
    /// The future. Returning an error, or panicking, has it started again; returning `Ok` ends it.
    pub run: Run,
}

impl ServiceArgs {
    /// Wraps an async function as a service's future.
    pub fn run<F, Fut>(run: F) -> Run
    where
        F: Fn(CancellationToken) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        Arc::new(move |stop, _| Box::pin(run(stop)))
    }

    /// The same for one that shows on its seat what it is doing.
    pub fn run_seated<F, Fut>(run: F) -> Run
    where
        F: Fn(CancellationToken, Arc<Seat>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), String>> + Send + 'static,
    {
        Arc::new(move |stop, seat| Box::pin(run(stop, seat)))
    }
}

impl fmt::Debug for ServiceArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceArgs({})", self.path)
    }
}

impl Actor for Service {
    type Msg = ();
    type State = (ServiceArgs, Arc<Seat>);
    type Arguments = ServiceArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        args: ServiceArgs,
    ) -> Result<Self::State, ActorProcessingErr> {
        let seat = Arc::new(args.board.sit(&args.path));
        myself.cast(())?;
        Ok((args, seat))
    }

    async fn handle(
        &self,
        myself: ActorRef<()>,
        (): (),
        (args, seat): &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        seat.show("running");
        let armed = async {
            // Tests arm a running service; nothing else completes this.
            let faults = args.faults.clone();
            faults.wait(args.name).await;
            faults.point(args.name);
        };
        tokio::select! {
            result = (args.run)(args.stop.clone(), Arc::clone(seat)) => result?,
            () = armed => {}
        }
        myself.stop(None);
        Ok(())
    }
}
