//! Taking pieces away: one, or all of them at once.

use std::fs::{self, File};
use std::sync::Arc;

use damselfly_core::download::Validator;
use parking_lot::MutexGuard;

use super::{Life, Pieces, TaskContent};
use crate::error::StoreError;
use crate::layout::create_data;
use crate::sidecar::{Linked, SidecarFile};

impl TaskContent {
    /// The piece is wrong after all: unpublishes it, so that it can be fetched again. Its room stays reserved. Content
    /// that is linked to a caller's file is forgotten altogether, because it is never repaired in place.
    ///
    /// # Errors
    /// Task gone, a failing disk. The piece is unpublished all the same, but a restart might bring it back.
    pub fn invalidate(&self, number: u32) -> Result<(), StoreError> {
        self.unpublish(number, None)
    }

    /// `since`: only if nothing else came into doubt since that epoch.
    pub(super) fn unpublish(&self, number: u32, since: Option<u64>) -> Result<(), StoreError> {
        let mut io = self.io.lock();
        let linked = {
            let mut inner = self.inner.lock();
            self.live(&inner)?;
            let current =
                since.is_none_or(|epoch| inner.epoch == epoch && inner.pieces.unverified.contains(number));
            if !current || !inner.pieces.published.contains(number) {
                return Ok(());
            }
            inner.epoch += 1;
            if inner.header.linked.is_none() {
                inner.pieces.published.remove(number);
                inner.pieces.unverified.remove(number);
                inner.pieces.reserved.insert(number);
            }
            inner.header.linked.is_some()
        };
        if linked {
            return self.forget(&mut io);
        }
        self.announce();
        io.write_missing(&*self.shared.system, number, 1)
    }

    /// Before something is written into a content file: one that is linked to a caller's file is replaced first.
    pub(super) fn forget_what_is_linked(&self) -> Result<(), StoreError> {
        let due = |this: &Self| {
            let inner = this.inner.lock();
            inner.header.linked.is_some()
                && (inner.header.geometry.is_none() || !inner.pieces.published.is_full())
        };
        if !due(self) {
            return Ok(());
        }
        let mut io = self.io.lock();
        if due(self) { self.forget(&mut io) } else { Ok(()) }
    }

    /// Leaves the content file to whoever it is linked to, and begins with an empty one. The generation stays.
    fn forget(&self, io: &mut MutexGuard<'_, SidecarFile>) -> Result<(), StoreError> {
        let (header, count) = {
            let mut inner = self.inner.lock();
            self.drop_pieces(&mut inner);
            inner.part_with_data();
            let mut header = inner.header.clone();
            header.linked = None;
            header.finished = None;
            (header, inner.pieces.published.count())
        };
        self.announce();
        tracing::warn!(task = %self.key, "a linked output was changed, its content will be fetched again");
        // A crash after the replacement leaves records of pieces that the new file does not have: the sidecar still
        // calls the content linked, so they are verified and found out.
        let length = header.geometry.map_or(0, |geometry| geometry.content_length());
        self.replace_data(length)
            .and_then(|()| io.write_missing(&*self.shared.system, 0, count))
            .and_then(|()| io.write_header(&*self.shared.system, &header))
            .inspect_err(|_| self.fail())?;
        self.inner.lock().header = header;
        Ok(())
    }

    /// The content changed at its origin: drops all pieces at once and begins that generation, of unknown length.
    /// Readers of the old content keep it until they are done. Nothing happens when the task is in that generation or
    /// a later one. Returns the generation it is in afterwards.
    ///
    /// # Errors
    /// Task gone, a failing disk.
    pub fn begin_generation(&self, generation: u64, validator: Validator) -> Result<u64, StoreError> {
        let mut io = self.io.lock();
        let mut header = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            inner.header.clone()
        };
        if header.generation >= generation {
            return Ok(header.generation);
        }
        header.generation = generation;
        header.validator = validator;
        header.geometry = None;
        header.headers.clear();
        header.digest = None;
        header.finished = None;
        header.suspect = false;
        header.updated = self.shared.system.now().wall;
        // The header drops all records. `linked` stays until the file is replaced: after a crash in between, the file
        // that others share must still be known as such.
        io.write_header(&*self.shared.system, &header)?;
        {
            let mut inner = self.inner.lock();
            self.drop_pieces(&mut inner);
            inner.pieces = Pieces::default();
            inner.part_with_data();
            inner.streaming = false;
            inner.header = header;
        }
        self.announce();
        self.replace_data(0).inspect_err(|_| self.fail())?;
        self.inner.lock().header.linked = None;
        Ok(generation)
    }

    /// Puts an empty content file of `length` bytes in the place of the present one. Only with `io` locked.
    fn replace_data(&self, length: u64) -> Result<(), StoreError> {
        let system = &*self.shared.system;
        let file = create_data(system, &self.paths.fresh)?;
        let replace = || {
            file.set_len(length)?;
            system.about_to("rename content file")?;
            fs::rename(&self.paths.fresh, &self.paths.data)
        };
        if let Err(error) = replace() {
            drop(fs::remove_file(&self.paths.fresh)); // the opening store removes it too
            return Err(StoreError::io("cannot replace", &self.paths.data, error));
        }
        let file = Arc::new(file);
        let mut inner = self.inner.lock();
        inner.data = Arc::downgrade(&file);
        if let Some((kept, _)) = &mut inner.keep {
            *kept = file;
        }
        Ok(())
    }

    /// A change of the files failed half-way, and memory and disk disagree: nothing more is done with them.
    fn fail(&self) {
        tracing::error!(task = %self.key, "the files of a task could not be replaced, dropping it");
        let mut inner = self.inner.lock();
        self.drop_pieces(&mut inner);
        inner.epoch += 1;
        inner.life = Life::Gone;
        drop(inner);
        self.announce();
    }

    /// Runs `work` with the sidecar locked, and what is known of the content file's links.
    pub(crate) fn with_io<T>(
        &self,
        work: impl FnOnce(&mut SidecarFile, Option<Linked>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut io = self.io.lock();
        let linked = {
            let inner = self.inner.lock();
            self.live(&inner)?;
            inner.header.linked
        };
        work(&mut io, linked)
    }

    /// The open sidecar.
    pub(crate) fn sidecar_file(&self) -> Result<Arc<File>, StoreError> {
        self.io.lock().file()
    }

    /// Flushes content and sidecar to the device: what is published now survives the loss of power. From then on every
    /// change of the metadata is flushed too.
    ///
    /// # Errors
    /// Task gone, a failing disk.
    pub fn sync(&self) -> Result<(), StoreError> {
        let mut io = self.io.lock();
        self.live(&self.inner.lock())?;
        let data = self.data(&io)?;
        let system = &*self.shared.system;
        system.flush(&data).map_err(StoreError::at("cannot flush", &self.paths.data))?;
        io.sync(system)?;
        // The names too; each directory is made once and seldom synced again.
        let root = self.shared.layout.root();
        for dir in self.paths.dir.ancestors().take_while(|dir| dir.starts_with(root)) {
            let synced = File::open(dir).and_then(|dir| system.flush(&dir));
            synced.map_err(StoreError::at("cannot flush", dir))?;
        }
        Ok(())
    }

    /// Remembers that the content file is linked elsewhere, as it looks now. Only with `io` locked.
    pub(crate) fn set_linked(&self, io: &mut SidecarFile, linked: Option<Linked>) -> Result<(), StoreError> {
        let mut header = self.inner.lock().header.clone();
        header.linked = linked;
        io.write_header(&*self.shared.system, &header)?;
        self.inner.lock().header.linked = linked;
        Ok(())
    }
}
