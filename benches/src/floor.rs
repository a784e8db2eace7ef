//! What this machine allows: sendfile to a socket on loopback, received, checksummed and written to an allocated file.

use std::fs::File;
use std::io::Read as _;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::process::{Cost, measured};
use crate::{BenchError, io};

/// One pass over `source` into `target`, which is made anew.
///
/// # Errors
/// When a file or socket fails.
pub fn sendfile_to_file(source: &Path, target: &Path) -> Result<Cost, BenchError> {
    let source = File::open(source).map_err(io("open the source"))?;
    let length = source.metadata().map_err(io("stat the source"))?.len();
    drop(std::fs::remove_file(target));
    let listener = TcpListener::bind("127.0.0.1:0").map_err(io("listen"))?;
    let out = TcpStream::connect(listener.local_addr().map_err(io("listen"))?).map_err(io("connect"))?;
    let (mut socket, _) = listener.accept().map_err(io("accept"))?;
    measured(|| {
        let sender = std::thread::spawn(move || {
            let mut offset = 0;
            while offset < length {
                if rustix::fs::sendfile(&out, &source, Some(&mut offset), 4 << 20).is_err() {
                    break;
                }
            }
        });
        let target = File::create(target).map_err(io("make the target"))?;
        rustix::fs::fallocate(&target, rustix::fs::FallocateFlags::empty(), 0, length)
            .map_err(|why| io("allocate the target")(why.into()))?;
        let mut buffer = vec![0; 512 << 10];
        let (mut done, mut crc) = (0, crc32fast::Hasher::new());
        while done < length {
            let take = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
            socket.read_exact(&mut buffer[..take]).map_err(io("receive"))?;
            crc.update(&buffer[..take]);
            target.write_all_at(&buffer[..take], done).map_err(io("write"))?;
            done += take as u64;
        }
        drop(sender.join());
        std::hint::black_box(crc.finalize());
        Ok(())
    })
}
