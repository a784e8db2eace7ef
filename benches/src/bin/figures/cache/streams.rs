//! Eight streams at once.

use std::process::Stdio;
use std::time::Duration;

use damselfly_benches::BenchError;
use damselfly_benches::process::{descriptors, memory, until};
use damselfly_benches::stats::median;
use damselfly_benches::together::together;

use super::{Cache, id, receipt};
use crate::bench::{mebibytes, say};

const STREAMS: u32 = 8;
/// How long descriptors may take to be closed after the clients have gone.
const PATIENCE: Duration = Duration::from_secs(10);

impl Cache<'_> {
    /// One file with as many tags, which are part of the id.
    pub(super) async fn streams(&self) -> Result<(), BenchError> {
        let (mut daemons, mut clients) = (Vec::new(), Vec::new());
        let daemon = self.host.pid();
        // Before the first round: what an allocator keeps after it is not idle memory.
        let (idle, open) = (memory(daemon)?, descriptors(daemon)?);
        for round in 0..self.rounds {
            let source = self.source()?;
            let imports = (0..STREAMS).map(|number| {
                let mut command = self.import_command(&source, "stream", "sha256");
                command.args(["--tag", &number.to_string()]).stdout(Stdio::piped());
                command
            });
            let imports = together(daemon, imports.collect()).await?;
            let ids = imports.outputs.iter().map(|output| id(&receipt(output, "stream")?));
            let ids = ids.collect::<Result<Vec<_>, _>>()?;
            let exports = ids.iter().map(|id| self.export_to_null_command(id));
            let exports = together(daemon, exports.collect()).await?;
            for output in &exports.outputs {
                receipt(output, "stream")?;
            }
            // What is still open then is told, not an error.
            drop(until(PATIENCE, async || descriptors(daemon).is_ok_and(|now| now <= open)).await);
            let left = descriptors(daemon)?;
            for id in &ids {
                self.forget(id)?;
            }
            let above = |peak: u64| mebibytes(peak.saturating_sub(idle));
            say(&format!(
                "round {round}: daemon idle {:.1} MiB, above that {:.1} MiB with {STREAMS} imports, {:.1} MiB with as \
                 many exports; a client {:.1} MiB, {:.1} MiB; descriptors {open} idle, {left} afterwards",
                mebibytes(idle),
                above(imports.daemon),
                above(exports.daemon),
                mebibytes(imports.command),
                mebibytes(exports.command)
            ));
            daemons.push(above(imports.daemon.max(exports.daemon)));
            clients.push(mebibytes(imports.command.max(exports.command)));
        }
        say(&format!(
            "streams: daemon {:.1} MiB above idle (goal: at most 64), a client {:.1} MiB (goal: at most 24)",
            median(&daemons),
            median(&clients)
        ));
        Ok(())
    }
}
