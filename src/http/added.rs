//! Assets that somebody adds for themselves, which folders that have the same content do not take along
//! when they go.

use crate::core::attributes::{ADDED_APPLICATION, Attribute, Attributes};
use crate::core::ids::Hash;
use crate::core::limits::EDIT_TRIES_MAX;
use crate::store::{Asset, Metadata, Store, StoreError};

/// Attributes of an asset that is added for itself: they name an application.
pub(crate) fn added(mut attributes: Attributes) -> Attributes {
    attributes.fill(Attributes::default().with_text(Attribute::Application, ADDED_APPLICATION));
    attributes
}

/// Records that an asset which was here already was added for itself: it leaves the trash, and names an
/// application. In a store of another program nothing is changed, because nothing is deleted there either.
pub(crate) async fn claim(store: &dyn Store, hash: Hash) -> Result<(), StoreError> {
    if !store.is_on_hold(&hash) {
        return Ok(());
    }
    for _ in 0..EDIT_TRIES_MAX {
        let Some(Asset { metadata, .. }) = store.lookup(hash).await? else { return Ok(()) };
        let names_application = !metadata.attributes.text(Attribute::Application).is_empty();
        if names_application && !metadata.trashed {
            return Ok(());
        }
        let (version, attributes) = (metadata.version, added(metadata.attributes.clone()));
        let claimed = Metadata { trashed: false, attributes, ..metadata };
        match store.set_metadata(hash, &claimed, Some(version)).await {
            Ok(_) => return Ok(()),
            Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Unreachable("the row is being changed all the time: try again".into()))
}
