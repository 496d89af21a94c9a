"""The site's true physics: watts, heat, voltage and the faults that the scenario plants.

Pure and seeded: no socket, file, clock or asyncio. Time comes in as seconds since the scenario's start.
"""
