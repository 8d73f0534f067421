"""An evaluation by itself: models are asked, the answers scored, compared and shown."""
