//! Faults that a simulation cannot cause from outside.

use super::{Journal, Result};

/// More pages than a database can have: no limit.
const PAGES_UNLIMITED: u32 = u32::MAX - 1;

impl Journal {
    /// From now on there is no room for another page, or there is again.
    pub fn simulate_full_disk(&mut self, full: bool) -> Result<()> {
        let pages: u32 = if full { 1 } else { PAGES_UNLIMITED };
        // SQLite raises a limit below the present size to that.
        self.connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }
}
