//! Databases: PostgreSQL sessions
