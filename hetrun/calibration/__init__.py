"""What was measured of devices: kept in the user's data folder, and put in place of the drivers' estimates."""
