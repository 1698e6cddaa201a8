from django.db import models


class Account(models.Model):
    name = models.CharField(max_length=50, primary_key=True)
    balance = models.IntegerField(default=0)


class Charge(models.Model):
    payment = models.CharField(max_length=200)
    account = models.ForeignKey(Account, models.PROTECT)
    dollars = models.IntegerField()
