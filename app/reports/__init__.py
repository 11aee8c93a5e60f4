"""Laboratory reports of a differential count: FHIR, HL7 v2, LOINC codes."""
