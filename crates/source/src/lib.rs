//! Where content comes from first: HTTP(S) origins.
