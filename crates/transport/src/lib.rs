//! How pieces cross the network, and the local socket.
