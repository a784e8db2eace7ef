//! Random events in any order: whatever happens, the checker finds nothing amiss, and with one good source left the
//! download comes to its end.
