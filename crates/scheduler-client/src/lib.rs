//! The announce dialogues, host announcements, hash ring and dynconfig.
