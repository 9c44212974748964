"""What timm lacks, registered into timm's registry; building models; loading their weights. No torch here."""
