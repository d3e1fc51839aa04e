//! Metadata for peers of the plain protocol: read from the cells with their times, and taken over from
//! what such a peer tells. [`crate::core::journal::told`] decides what is adopted.

use rusqlite::{Connection, params};

use super::read::model_num;
use super::schema::row_u64;
use super::{Journal, JournalReader, Result};
use crate::core::ids::Hash;
use crate::core::journal::asset::{ASSET_MODEL, TAGS};
use crate::core::journal::cell::{ALIVE, CLEAR};
use crate::core::journal::draft::{Draft, DraftChange, DraftError};
use crate::core::journal::op::value_from_bytes;
use crate::core::journal::stamp::Hlc;
use crate::core::journal::told::{Own, Told, ToldTag, ToldValue, adopt};
use crate::core::limits::{
    ASSET_TAGS_BYTES_MAX, CELL_BYTES, META_ASSETS_MAX, META_FRAME_BYTES, META_TAGS_MAX,
};

/// The scope of shared records.
const SHARED: i64 = 0;

/// The cells of an asset's record that stores can show, its registers included, without its tags.
const FIELDS: &str = "SELECT field, elem, hlc, value FROM cells
     WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field IN
         ('', 'description', 'trashed', 'name', 'path', 'media_type', 'modified_ms', 'captured_ms',
          'application', 'user')";

const TAG_CELLS: &str = "SELECT elem, hlc, removed FROM cells
     WHERE model = ?1 AND scope = ?2 AND id = ?3 AND field = ?4 AND elem != ''";

impl Journal {
    /// Adopts what a peer tells of assets, each of another one, in one transaction. Returns for each why
    /// not all of it was written.
    pub fn adopt(
        &mut self,
        told: &[Told],
        now_ms: u64,
    ) -> Result<Vec<std::result::Result<(), DraftError>>> {
        let adopted = told.iter().map(|told| Ok(adopt(told, &own(&self.connection, told.hash)?)));
        let adopted = adopted.collect::<Result<Vec<_>>>()?;
        let mut tx = self.begin(now_ms)?;
        let mut results = Vec::with_capacity(adopted.len());
        for puts in adopted {
            let mut result = Ok(());
            for (put, at) in puts {
                let draft = Draft { changes: vec![DraftChange::Put(put)], expect: Vec::new() };
                if let Err(error) = tx.write(&draft, at)? {
                    result = Err(error);
                }
            }
            results.push(result);
        }
        tx.commit()?;
        Ok(results)
    }
}

impl JournalReader {
    /// What there is to tell of assets, as much as fits into a frame, and how many of the assets that
    /// is. Those of which there is nothing, or more than a frame holds, are left out.
    pub fn told(&self, hashes: &[Hash]) -> Result<(Vec<Told>, usize)> {
        let (mut all, mut bytes, mut tags) = (Vec::new(), 0, 0);
        for (count, hash) in hashes.iter().enumerate() {
            let Own { told, .. } = own(&self.connection, *hash)?;
            if told.is_empty() || !told.fits() {
                continue;
            }
            (bytes, tags) = (bytes + told.size_bytes(), tags + told.tags.len());
            let is_full = bytes > META_FRAME_BYTES || tags > META_TAGS_MAX;
            if all.len() == META_ASSETS_MAX || is_full && !all.is_empty() {
                return Ok((all, count));
            }
            all.push(told);
        }
        Ok((all, hashes.len()))
    }
}

fn own(connection: &Connection, hash: Hash) -> Result<Own> {
    let mut own = Own { told: Told::nothing(hash), alive: false, cleared: None };
    let Some(model) = model_num(connection, ASSET_MODEL)? else { return Ok(own) };
    let mut query = connection.prepare_cached(FIELDS)?;
    let mut rows = query.query(params![model, SHARED, hash.0])?;
    while let Some(row) = rows.next()? {
        let (field, elem): (String, String) = (row.get(0)?, row.get(1)?);
        let at = Hlc(row_u64(row, 2)?);
        match (field.as_str(), elem.as_str()) {
            ("", ALIVE) => own.alive = true,
            ("", CLEAR) => own.cleared = Some(at),
            ("", _) => {}
            (_, "") => {
                let value = value_from_bytes(&row.get::<_, Vec<u8>>(3)?).flatten();
                own.told.fields.insert(field, ToldValue { value, at });
            }
            _ => {}
        }
    }
    let mut query = connection.prepare_cached(TAG_CELLS)?;
    let mut rows = query.query(params![model, SHARED, hash.0, TAGS])?;
    let mut bytes = 0;
    while let Some(row) = rows.next()?
        && bytes <= ASSET_TAGS_BYTES_MAX
    {
        let tag: String = row.get(0)?;
        bytes += tag.len() + CELL_BYTES;
        let told = ToldTag { at: Hlc(row_u64(row, 1)?), removed: row.get(2)? };
        own.told.tags.insert(tag, told);
    }
    Ok(own)
}
