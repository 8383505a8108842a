//! The JSON schema of the configuration, for editors and other checkers.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::root::Config;

/// The schema, JSON Schema draft 2020-12.
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<Config>().to_value();
    if let Some(root) = schema.as_object_mut() {
        root.insert("$id".to_owned(), json!("urn:qudag-sidecar:config:1"));
        root.insert("title".to_owned(), json!("Configuration of qudag-sidecar"));
        // Every key has a default, but a file without a version could not be told apart from one of a later format.
        root.insert("required".to_owned(), json!(["version"]));
    }
    schema
}
