//! The programs: dfdaemon, dfget, dfctl, dfscheduler.
