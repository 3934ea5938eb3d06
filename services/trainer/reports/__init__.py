"""What people read of a job: curves and gates as pictures, and one page that holds all of it."""
