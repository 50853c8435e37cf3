"""From anyone's raw tables to a prepared store; knows no encoder and no training."""
